// TableNADE's walks, for one instruction-set level: every column has a conditional of its own kind.
//
//   p(x_d | x_S) = softmax, or a mixture, of V_d h + b_d      a ← a + (U_d + φ_d(x_d) W_d)
//
// with φ the one-hot form of a category, and (8 tanh(x/8), arsinh x) of a number. Uria, Murray & Larochelle, "A Deep
// and Tractable Density Estimator", ICML 2014, and "RNADE", NIPS 2013.
#include "common/philox.h"
#include "cpu/any_order/table_nade.h"
#include "cpu/any_order/walk.h"
#include "cpu/conditionals.h"
#include "cpu/mixture.h"
#include "cpu/mixture_cells.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr float kBend = 8.0f;  // standard deviations, as in pyar.reference.conditionals

// ln(y + √(1 + y²)), y = |x|, with the sign of x; where y² is beyond float, ln 2y.
PYAR_INLINE Vector area_hyperbolic_sine(Vector x) {
  const Vector y = absolute(x);
  const IntVector far = y > 1e4f;
  const Vector near = select(far, broadcast(1.0f), y);
  const Vector square = near * near;
  const Vector more = near + square / (1.0f + square_root(1.0f + square));  // ln(1 + more)
  const Vector value =
      select(far, logarithm(y) + 0.693147181f,
             select(more <= 1.0f, logarithm_of_one_plus(minimum(broadcast(1.0f), more)), logarithm(1.0f + more)));
  return (Vector)((IntVector)value | ((IntVector)x & (int32_t)0x80000000));
}

// The random word that a value is drawn with: as philox_uniform()'s, with 1 in the counter's second word.
PYAR_INLINE uint32_t second_word(uint64_t seed, uint64_t sample, uint32_t d) {
  const PhiloxBlock counter = {{d >> 2, 1u, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)}};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)).word[d & 3];
}

struct TableNadeRules {
  using Model = TableNadeParameters;

  static PYAR_INLINE void prefetch_inputs(const Model& m, int64_t d, float) {
    const TableColumn& column = m.columns[d];
    prefetch(m.U + d * m.H, m.H);
    if (column.width <= 2) prefetch(m.W + column.inputs * m.H, column.width * m.H);
  }

  static PYAR_INLINE void prefetch_outputs(const Model& m, int64_t d) {
    if (m.columns[d].P == 1) prefetch(m.V + m.columns[d].outputs * m.F, m.F);
  }

  static PYAR_INLINE void prefetch_column(const Model& m, int64_t d) {
    prefetch_outputs(m, d);
    prefetch_inputs(m, d, 0.0f);
  }

  static PYAR_INLINE void take(const Model& m, int64_t d, float x, float* a, float* h) {
    const TableColumn& column = m.columns[d];
    const float *u = m.U + d * m.H, *w = m.W + column.inputs * m.H;
    if (column.kind == ColumnKind::categories) {
      add_state(m, u, w, static_cast<int64_t>(x), a, h);
      return;
    }
    const float bent = kBend * hyperbolic_tangent(broadcast(x / kBend))[0];
    add_rows<3>(m, {u, w, w + m.H}, {1.0f, bent, area_hyperbolic_sine(broadcast(x))[0]}, a, h);
  }

  // Rows whose columns have one form, kWidth at most.
  template <class Visit>
  static PYAR_INLINE void for_chunks(const Model& m, const WalkTile& t, int64_t rows, const Visit& visit) {
    int32_t list[kTileWalks];
    const auto form = [&](int32_t row) { return m.columns[t.dims[row]].form; };
    for (int32_t row = 0; row < rows; ++row) {
      int64_t place = row;
      for (; place > 0 && form(list[place - 1]) > form(row); --place) list[place] = list[place - 1];
      list[place] = row;
    }
    for (int64_t first = 0; first < rows;) {
      int64_t count = 1;
      while (count < kWidth && first + count < rows && form(list[first + count]) == form(list[first])) ++count;
      visit(list + first, count);
      first += count;
    }
  }

  // t.outputs of the first `count` lanes.
  static PYAR_INLINE void outputs(const Model& m, const WalkTile& t, const float* h, const int32_t* list,
                                  int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const TableColumn& column = m.columns[t.dims[list[i]]];
      output_lane(m, t, i, m.V + column.outputs * m.F, m.b + column.outputs, column.P, h + list[i] * t.stride);
    }
  }

  // log p(x) from t.outputs, which are overwritten. Lanes from `count` on mean nothing.
  template <Family kFamily>
  static Vector mixture(const Model& m, const WalkTile& t, const int32_t* list, int64_t count, Vector x) {
    float floor[kWidth], step[kWidth], low[kWidth], high[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) {
      const TableColumn& column = m.columns[t.dims[list[i < count ? i : 0]]];
      floor[i] = column.min_scale;
      step[i] = static_cast<float>(column.step);
      low[i] = static_cast<float>(column.low);
      high[i] = static_cast<float>(column.high);
    }
    const int64_t C = m.columns[t.dims[list[0]]].count;
    if (step[0] == 0.0f)
      return mixture_log_density<kFamily, false>(t.outputs, kWidth, C, x, load(floor), nullptr, Vector{}, nullptr);
    return mixture_log_probability<kFamily>(t.outputs, kWidth, C, x, load(floor), {load(step), load(low), load(high)});
  }

  static Vector log_probabilities(const Model& m, const WalkTile& t, const int32_t* list, int64_t count, Vector x) {
    const TableColumn& first = m.columns[t.dims[list[0]]];
    switch (first.kind) {
      case ColumnKind::gaussian:
        return mixture<Family::gaussian>(m, t, list, count, x);
      case ColumnKind::logistic:
        return mixture<Family::logistic>(m, t, list, count, x);
      case ColumnKind::laplace:
        return mixture<Family::laplace>(m, t, list, count, x);
      default:
        if (first.P == 0) return Vector{};
        return log_probability<false>(t.outputs, kWidth, first.P, __builtin_convertvector(x, IntVector), Vector{});
    }
  }

  static void evaluate(const TableNadeForward& q, const WalkTile& t, const float* h, const int32_t* list,
                       int64_t count) {
    const Model& m = q.model;
    outputs(m, t, h, list, count);
    float x[kWidth] = {}, terms[kWidth];
    for (int64_t i = 0; i < count; ++i) x[i] = q.walks.x[t.walks[list[i]] * m.D + t.dims[list[i]]];
    store(terms, log_probabilities(m, t, list, count, load(x)));
    for (int64_t i = 0; i < count; ++i) q.terms[t.walks[list[i]] * m.D + t.dims[list[i]]] = terms[i];
  }

  // Values of a mixture, on the columns' grids if they have any.
  template <Family kFamily>
  static Vector draw_numbers(const Model& m, const WalkTile& t, const int32_t* list, int64_t count, Vector u,
                             const uint32_t* words) {
    float x[kWidth], floor[kWidth];
    const auto column = [&](int64_t lane) -> const TableColumn& { return m.columns[t.dims[list[lane]]]; };
    for (int64_t i = 0; i < kWidth; ++i) floor[i] = column(i < count ? i : 0).min_scale;
    UnsignedVector random;
    memcpy(&random, words, sizeof random);
    store(x, draw_mixture<kFamily>(t.outputs, kWidth, column(0).count, u, random, load(floor), t.weights));
    for (int64_t i = 0; i < count; ++i) {
      const TableColumn& c = column(i);
      if (c.step == 0.0) continue;
      const double value = c.origin + c.step * __builtin_rint((static_cast<double>(x[i]) - c.origin) / c.step);
      x[i] = static_cast<float>(value < c.low ? c.low : value > c.high ? c.high : value);
    }
    return load(x);
  }

  static bool draw(const TableNadeSample& q, const WalkTile& t, const float* h, const int32_t* list, int64_t count) {
    const Model& m = q.model;
    const TableColumn& first = m.columns[t.dims[list[0]]];
    outputs(m, t, h, list, count);
    cool(t, first.P, q.temperature);
    float u[kWidth] = {};
    uint32_t words[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t sample = static_cast<uint64_t>(q.indices[t.walks[list[i]]]);
      const uint32_t d = static_cast<uint32_t>(t.dims[list[i]]);
      u[i] = philox_uniform(q.seed, sample, d);
      if (first.kind != ColumnKind::categories) words[i] = second_word(q.seed, sample, d);
    }
    Vector x = {}, term = {};
    switch (first.kind) {
      case ColumnKind::gaussian:
        x = draw_numbers<Family::gaussian>(m, t, list, count, load(u), words);
        break;
      case ColumnKind::logistic:
        x = draw_numbers<Family::logistic>(m, t, list, count, load(u), words);
        break;
      case ColumnKind::laplace:
        x = draw_numbers<Family::laplace>(m, t, list, count, load(u), words);
        break;
      default:
        if (first.P > 0) {
          const IntVector states = draw_states(t.outputs, t.weights, kWidth, first.P, load(u), &term);
          x = select(states == kNoState, broadcast(kInfinity), __builtin_convertvector(states, Vector));
        }
    }
    if (first.kind != ColumnKind::categories) term = log_probabilities(m, t, list, count, x);
    float values[kWidth], terms[kWidth];
    store(values, x);
    store(terms, term);
    for (int64_t i = 0; i < count; ++i) {
      if (!(__builtin_fabsf(values[i]) <= kLargestFloat)) return false;
      const int64_t at = t.walks[list[i]] * m.D + t.dims[list[i]];
      q.x[at] = values[i];
      q.terms[at] = terms[i];
    }
    return true;
  }
};

}  // namespace

int64_t table_nade_forward_scratch(const TableNadeParameters& model) { return WalkTile(model, 1, nullptr).size; }

void table_nade_forward(const TableNadeForward& q, int64_t begin_step, int64_t end_step, float* scratch) {
  forward_walks<TableNadeRules>(q, begin_step, end_step, scratch);
}

int64_t table_nade_sample_scratch(const TableNadeParameters& model) {
  return WalkTile(model, kTileWalks, nullptr).size;
}

bool table_nade_sample(const TableNadeSample& q, int64_t begin, int64_t end, float* scratch) {
  return sample_walks<TableNadeRules>(q, begin, end, scratch);
}

}  // namespace pyar::cpu::PYAR_LEVEL
