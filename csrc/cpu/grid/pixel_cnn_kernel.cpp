// The gated PixelCNN's sampling, for one instruction-set level: every feature is computed once.
//
//   v' = vertical ∗ v + U c                  v ← tanh(v'_1) ⊙ σ(v'_2)
//   h' = horizontal ∗ h + cross v' + U' c    g = tanh(h'_1) ⊙ σ(h'_2)
//   h ← h + residual g                       features = Σ_layers skip g
//
// van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016. v sees the rows above alone: a
// whole row of v and of cross v' is a matrix product over columns once the row above is drawn. h follows pixel by
// pixel, a product over the samples of a tile. Features lie in the lanes of vectors, the two halves of a gate side by
// side in a panel. Every sum is one chain in an order of the model alone: a
// sample's bits are those of every batch, tile, thread count and level with fused multiply-add.
#include "cpu/grid/head.h"
#include "cpu/grid/pixel_cnn.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr int64_t kUnitsOfPanel = kPanelFloats / 2;  // of gates: so many of each half

PYAR_INLINE int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

// tanh(a)·σ(b) = sign(a)·(−m) / ((2 + m)(1 + e^−b)) with m = e^−2|a| − 1, which is accurate near zero too.
PYAR_INLINE Vector gate(Vector a, Vector b) {
  Vector power, t;
  const Vector negative = (Vector)((IntVector)a | (int32_t)0x80000000);
  split_exponential(negative + negative, &power, &t);
  const Vector m = fused_multiply_add(power, t, power - 1.0f);
  Vector b_power, b_t;
  split_exponential(minimum(broadcast(87.0f), -b), &b_power, &b_t);
  const Vector e = fused_multiply_add(b_power, b_t, b_power);
  const Vector value = m / ((2.0f + m) * (1.0f + e));
  return (Vector)(((IntVector)value & 0x7fffffff) | ((IntVector)a & (int32_t)0x80000000));
}

// The output of a lane where the two halves of 2F outputs share panels.
PYAR_INLINE int64_t gate_output(int64_t lane, int64_t F) {
  const int64_t panel = lane / kPanelFloats, in_panel = lane % kPanelFloats;
  const int64_t half = in_panel / kUnitsOfPanel, unit = panel * kUnitsOfPanel + in_panel % kUnitsOfPanel;
  return unit < F ? half * F + unit : -1;
}

// Calls visit(unit, v_1, v_2) for the units of one row of gate panels, the vectors of the two halves.
template <class Visit>
PYAR_INLINE void for_gates(const float* sums, int64_t F, const Visit& visit) {
  for (int64_t unit = 0; unit < F; unit += kWidth) {
    const float* at = sums + unit / kUnitsOfPanel * kPanelFloats + unit % kUnitsOfPanel;
    visit(unit, load(at), load(at + kUnitsOfPanel));
  }
}

// Where the packed parameters lie.
struct Packed {
  struct Layer {
    float *vertical, *horizontal, *cross;    // panels of gates
    float* through;                          // panels of residual's vectors, then skip's
    float *vertical_bias, *horizontal_bias;  // [gate lanes]
  };
  const PixelCnnModel& m;
  int64_t gate_panels, gate_lanes;  // of 2F outputs
  int64_t size;
  float* base;

  Packed(const PixelCnnModel& model, const float* base_) : m(model), base(const_cast<float*>(base_)) {
    gate_panels = (m.F + kUnitsOfPanel - 1) / kUnitsOfPanel;
    gate_lanes = gate_panels * kPanelFloats;
    size = offset(m.L) + aligned(m.F) + PackedHead(m.head, nullptr).size;
  }

  int64_t through_panels(int64_t l) const { return panels_of(vectors_of(m.F) * (m.layers[l].residual ? 2 : 1)); }

  int64_t layer_size(int64_t l) const {
    const PixelCnnLayer& layer = m.layers[l];
    const int64_t vertical = layer.inputs * layer.taps * (2 * layer.reach + 1), horizontal = layer.inputs * layer.taps;
    return gate_lanes * (vertical + horizontal + 2 * m.F + 2) + through_panels(l) * kPanelFloats * m.F;
  }

  int64_t offset(int64_t l) const {
    int64_t total = 0;
    for (int64_t i = 0; i < l; ++i) total += layer_size(i);
    return total;
  }

  Layer layer(int64_t l) const {
    const PixelCnnLayer& from = m.layers[l];
    Layer to;
    to.vertical = base + offset(l);
    to.horizontal = to.vertical + gate_lanes * from.inputs * from.taps * (2 * from.reach + 1);
    to.cross = to.horizontal + gate_lanes * from.inputs * from.taps;
    to.vertical_bias = to.cross + gate_lanes * 2 * m.F;
    to.horizontal_bias = to.vertical_bias + gate_lanes;
    to.through = to.horizontal_bias + gate_lanes;
    return to;
  }

  float* skip_bias() const { return base + offset(m.L); }  // [F], of all layers
  PackedHead head() const { return PackedHead(m.head, base + offset(m.L) + aligned(m.F)); }
};

struct Space {
  float* image;     // [n, rows + reach, columns + 2·reach, C], zeros outside the image
  float* v;         // of every layer but the first, what it reads: [n, reach + 1 rows in turn, columns + 2·reach, F]
  float* h;         // likewise [n, reach + columns, F], of the current row
  float* waiting;   // of every layer h' but for its horizontal part: [n, columns, gate lanes]
  float* starts;    // with context: what v' and h' start from, [L, 2, n, gate lanes]
  float* features;  // [n, F]
  float* g;         // [n, F]
  float* through;   // [n, lanes of residual and skip]
  int64_t v_size, h_size, waiting_size;  // of a layer
  int64_t zeros;                         // floats that are zero at first, from the image on
  HeadSpace head;
  int64_t size;

  Space(const PixelCnnModel& m, int64_t n, bool context, float* base) : head(m.head, n, nullptr) {
    const int64_t lanes = Packed(m, nullptr).gate_lanes, reach = m.layers[0].reach;
    const int64_t further = m.L > 1 ? m.layers[1].reach : 0;
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += aligned(count);
      return base == nullptr ? nullptr : base + at;
    };
    v_size = aligned(n * (further + 1) * (m.columns + 2 * further) * m.F);
    h_size = aligned(n * (further + m.columns) * m.F);
    waiting_size = aligned(n * m.columns * lanes);
    image = floats(n * (m.rows + reach) * (m.columns + 2 * reach) * m.head.C);
    v = floats((m.L - 1) * v_size);
    h = floats((m.L - 1) * h_size);
    zeros = used;
    waiting = floats(m.L * waiting_size);
    starts = floats(context ? m.L * 2 * n * lanes : 0);
    features = floats(n * m.F);
    g = floats(n * m.F);
    through = floats(n * panels_of(2 * vectors_of(m.F)) * kPanelFloats);
    head = HeadSpace(m.head, n, floats(head.size));
    size = used;
  }

  float* v_of(int64_t l) const { return v + (l - 1) * v_size; }
  float* h_of(int64_t l) const { return h + (l - 1) * h_size; }
  float* waiting_of(int64_t l) const { return waiting + l * waiting_size; }
};

class Tile {
 public:
  Tile(const PixelCnnSample& q, const PixelCnnTile& tile)
      : q_(q),
        m_(q.model),
        packed_(q.model, q.packed),
        s_(q.model, tile.n, q.gates != nullptr, tile.space),
        first_(tile.first),
        n_(tile.n),
        F_(q.model.F),
        C_(q.model.head.C),
        G_(packed_.gate_lanes) {}

  void begin() {
    memset(s_.image, 0, s_.zeros * sizeof(float));
    for (int64_t i = 0; i < s_.head.lanes; ++i) s_.head.log_prob[i] = 0.0;
    if (q_.gates == nullptr) return;
    for (int64_t l = 0; l < m_.L; ++l) {
      const Packed::Layer layer = packed_.layer(l);
      for (int64_t i = 0; i < n_; ++i) {
        const float* added = q_.gates + ((first_ + i) * m_.L + l) * 4 * F_;
        for (int64_t lane = 0; lane < G_; ++lane) {
          const int64_t output = gate_output(lane, F_);
          start(l, 0, i)[lane] = layer.vertical_bias[lane] + (output < 0 ? 0.0f : added[output]);
          start(l, 1, i)[lane] = layer.horizontal_bias[lane] + (output < 0 ? 0.0f : added[2 * F_ + output]);
        }
      }
    }
  }

  // v of the columns, and what it gives to h.
  //   sums  [columns, 2F and gate lanes], work space
  void row(int64_t row, int64_t l, int64_t begin, int64_t end, float* sums) {
    const PixelCnnLayer& layer = m_.layers[l];
    const Packed::Layer packed = packed_.layer(l);
    const int64_t k = 2 * layer.reach + 1, I = layer.inputs, width = m_.columns + 2 * layer.reach;
    const bool is_given = (row + 1) * m_.columns * C_ <= q_.sample.num_given;  // h is not needed
    for (int64_t i = 0; i < n_; ++i) {
      const float* v_start = q_.gates == nullptr ? packed.vertical_bias : start(l, 0, i);
      const float* h_start = q_.gates == nullptr ? packed.horizontal_bias : start(l, 1, i);
      const auto read = [&](int64_t tap) {
        if (l == 0) return s_.image + ((i * (m_.rows + layer.reach) + row + tap) * width + begin) * I;
        const int64_t turn = (row + 1 + tap) % (layer.reach + 1);  // row − reach + tap, in the turn of reach + 1 rows
        return s_.v_of(l) + ((i * (layer.reach + 1) + turn) * width + begin) * I;
      };
      float* above = nullptr;
      if (l + 1 < m_.L) {
        const int64_t reach = m_.layers[l + 1].reach;
        above =
            s_.v_of(l + 1) + ((i * (reach + 1) + row % (reach + 1)) * (m_.columns + 2 * reach) + reach + begin) * F_;
      }
      const int64_t count = end - begin;
      float* lanes = sums + m_.columns * 2 * F_;
      for (int64_t column = 0; column < count; ++column) memcpy(lanes + column * G_, v_start, G_ * sizeof(float));
      for (int64_t tap = 0; tap < layer.taps; ++tap) {
        const Operand operand = {read(tap), I, k * I, tap * k * I};
        add_products(count, &operand, 1, layer.taps * k * I, packed.vertical, lanes, G_, G_, Add::to_what_is_there);
      }
      for (int64_t column = 0; column < count; ++column)
        for_gates(lanes + column * G_, F_, [&](int64_t unit, Vector a, Vector b) __attribute__((always_inline)) {
          store_units(sums + column * 2 * F_, unit, F_, a);
          store_units(sums + column * 2 * F_ + F_, unit, F_, b);
          if (above != nullptr) store_units(above + column * F_, unit, F_, gate(a, b));
        });
      if (is_given) continue;
      float* waiting = s_.waiting_of(l) + (i * m_.columns + begin) * G_;
      for (int64_t column = 0; column < count; ++column) memcpy(waiting + column * G_, h_start, G_ * sizeof(float));
      const Operand operand = {sums, 2 * F_, 2 * F_, 0};
      add_products(count, &operand, 1, 2 * F_, packed.cross, waiting, G_, G_, Add::to_what_is_there);
    }
  }

  // h pixel by pixel, and the draws.
  bool pixels(int64_t row) {
    const int64_t reach = m_.layers[0].reach, width = m_.columns + 2 * reach;
    const bool is_given = (row + 1) * m_.columns * C_ <= q_.sample.num_given;
    const PackedHead head = packed_.head();
    const float scale = 2.0f / static_cast<float>(m_.head.K - 1);
    for (int64_t column = 0; column < m_.columns; ++column) {
      if (!is_given) features(row, column);
      const int64_t pixel = row * m_.columns + column;
      if (!draw_pixel(m_.head, head, q_.sample, s_.head, pixel, first_, n_, s_.features)) return false;
      for (int64_t i = 0; i < n_; ++i) {
        float* numbers = s_.image + ((i * (m_.rows + reach) + row + reach) * width + reach + column) * C_;
        const uint8_t* x = q_.sample.x + (first_ + i) * q_.sample.D + pixel * C_;
        for (int64_t c = 0; c < C_; ++c) numbers[c] = static_cast<float>(x[c]) * scale - 1.0f;
      }
    }
    return true;
  }

  void end() {
    for (int64_t i = 0; i < n_; ++i) q_.sample.log_prob[first_ + i] = static_cast<float>(s_.head.log_prob[i]);
  }

 private:
  float* start(int64_t l, int64_t which, int64_t i) const { return s_.starts + ((l * 2 + which) * n_ + i) * G_; }

  // The features of a pixel of all samples.
  void features(int64_t row, int64_t column) {
    for (int64_t i = 0; i < n_; ++i) memcpy(s_.features + i * F_, packed_.skip_bias(), F_ * sizeof(float));
    for (int64_t l = 0; l < m_.L; ++l) {
      const PixelCnnLayer& layer = m_.layers[l];
      const Packed::Layer packed = packed_.layer(l);
      const int64_t reach = layer.reach;
      const float* read;
      int64_t stride;
      if (l == 0) {
        const int64_t width = m_.columns + 2 * reach;
        read = s_.image + ((row + reach) * width + column) * C_;
        stride = (m_.rows + reach) * width * C_;
      } else {
        read = s_.h_of(l) + column * F_;
        stride = (reach + m_.columns) * F_;
      }
      float* waiting = s_.waiting_of(l) + column * G_;
      const Operand left = {read, stride, layer.taps * layer.inputs, 0};
      add_products(n_, &left, 1, layer.taps * layer.inputs, packed.horizontal, waiting, m_.columns * G_, G_,
                   Add::to_what_is_there);
      for (int64_t i = 0; i < n_; ++i)
        for_gates(waiting + i * m_.columns * G_, F_,
                  [&](int64_t unit, Vector a, Vector b)
                      __attribute__((always_inline)) { store_units(s_.g + i * F_, unit, F_, gate(a, b)); });
      const int64_t residuals = layer.residual == nullptr ? 0 : vectors_of(F_), all = residuals + vectors_of(F_);
      const float* before = l == 0 ? nullptr : s_.h_of(l) + (reach + column) * F_;
      float* after = nullptr;
      int64_t after_stride = 0;
      if (l + 1 < m_.L) {
        const int64_t next = m_.layers[l + 1].reach;
        after = s_.h_of(l + 1) + (next + column) * F_;
        after_stride = (next + m_.columns) * F_;
      }
      // Residual's vectors, then skip's, which goes on from what the layers below gave.
      const int64_t lanes = all * kWidth, first_skip = residuals * kWidth;
      for (int64_t i = 0; i < n_; ++i) {
        float* to = s_.through + i * lanes;
        for (int64_t unit = 0; unit < F_; unit += kWidth) {
          if (residuals > 0) store(to + unit, load_units(layer.residual_bias, unit, F_));
          store(to + first_skip + unit, load_units(s_.features + i * F_, unit, F_));
        }
      }
      const Operand operand = {s_.g, F_, F_, 0};
      add_products(n_, &operand, 1, F_, packed.through, s_.through, lanes, lanes, Add::to_what_is_there);
      for (int64_t i = 0; i < n_; ++i) {
        const float* sums = s_.through + i * lanes;
        for (int64_t unit = 0; unit < F_; unit += kWidth) {
          store_units(s_.features + i * F_, unit, F_, load(sums + first_skip + unit));
          if (residuals == 0) continue;
          Vector h = load(sums + unit);
          if (before != nullptr) h = load_units(before + i * stride, unit, F_) + h;
          store_units(after + i * after_stride, unit, F_, h);
        }
      }
    }
  }

  const PixelCnnSample& q_;
  const PixelCnnModel& m_;
  const Packed packed_;
  const Space s_;
  const int64_t first_, n_, F_, C_, G_;
};

}  // namespace

int64_t pixel_cnn_packed_size(const PixelCnnModel& model) { return Packed(model, nullptr).size; }

void pixel_cnn_pack(const PixelCnnModel& m, int64_t l, float* base) {
  const Packed packed(m, base);
  const int64_t F = m.F;
  if (l == m.L) {
    packed.head().pack(m.head);
    for (int64_t f = 0; f < F; ++f) {
      float sum = 0.0f;
      for (int64_t i = 0; i < m.L; ++i) sum += m.layers[i].skip_bias[f];
      packed.skip_bias()[f] = sum;
    }
    return;
  }
  const PixelCnnLayer& layer = m.layers[l];
  const Packed::Layer to = packed.layer(l);
  const auto output = [F](int64_t lane) { return gate_output(lane, F); };
  pack_panels(layer.vertical, layer.inputs, layer.taps * (2 * layer.reach + 1), packed.gate_panels, output,
              to.vertical);
  pack_panels(layer.horizontal, layer.inputs, layer.taps, packed.gate_panels, output, to.horizontal);
  pack_panels(layer.cross, 2 * F, 1, packed.gate_panels, output, to.cross);
  for (int64_t lane = 0; lane < packed.gate_lanes; ++lane) {
    const int64_t o = output(lane);
    to.vertical_bias[lane] = o < 0 ? 0.0f : layer.vertical_bias[o];
    to.horizontal_bias[lane] = o < 0 ? 0.0f : layer.horizontal_bias[o];
  }
  // Residual's vectors, then skip's: each pass leaves the other's lanes alone.
  const int64_t panels = packed.through_panels(l), padded = vectors_of(F) * kWidth;
  const int64_t residuals = layer.residual == nullptr ? 0 : padded;
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t lane = 0; lane < kPanelFloats; ++lane) {
      const int64_t at = p * kPanelFloats + lane;
      const bool is_residual = at < residuals;
      const int64_t unit = is_residual ? at : at - residuals;
      const float* weight = is_residual ? layer.residual : layer.skip;
      float* column = to.through + p * F * kPanelFloats + lane;
      for (int64_t i = 0; i < F; ++i) column[i * kPanelFloats] = unit < F ? weight[unit * F + i] : 0.0f;
    }
  }
}

int64_t pixel_cnn_space(const PixelCnnModel& model, int64_t n, bool context) {
  return Space(model, n, context, nullptr).size;
}

int64_t pixel_cnn_sums(const PixelCnnModel& model) {
  return model.columns * (2 * model.F + Packed(model, nullptr).gate_lanes);
}

void pixel_cnn_begin(const PixelCnnSample& q, const PixelCnnTile& tile) { Tile(q, tile).begin(); }

void pixel_cnn_row(const PixelCnnSample& q, const PixelCnnTile& tile, int64_t row, int64_t layer, int64_t begin,
                   int64_t end, float* sums) {
  Tile(q, tile).row(row, layer, begin, end, sums);
}

bool pixel_cnn_pixels(const PixelCnnSample& q, const PixelCnnTile& tile, int64_t row) {
  return Tile(q, tile).pixels(row);
}

void pixel_cnn_end(const PixelCnnSample& q, const PixelCnnTile& tile) { Tile(q, tile).end(); }

}  // namespace pyar::cpu::PYAR_LEVEL
