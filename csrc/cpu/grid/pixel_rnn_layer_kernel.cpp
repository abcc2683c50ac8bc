// A layer of the Row LSTM or the Diagonal BiLSTM and its gradients, one sample at a time, for one instruction-set
// level.
//
// Forward, at every position of a step (see pixel_rnn.h):
//   a = b + Σ_taps W_tap source_tap        (i, f, g, o) = gates of a        h, c = cell        y = x + up_bias +
//   up·mixed
// Back, from the last step to the first, with the cell's backward giving ∂a from ∂h and ∂c:
//   ∂mixed = upᵀ ∂y       ∂source_tap += W_tapᵀ ∂a       ∂W_tap = Σ_positions ∂a source_tapᵀ       ∂up = Σ ∂y mixedᵀ
//
// The positions of a step are the rows of a tile, so that weights serve several of them, and the hidden units its
// columns, a unit's four gates together, so that the cell is computed from registers. Every sum has one order, whatever
// the tile, the batch, the thread count and the width of a level's vectors.
#include "cpu/grid/pixel_rnn_step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// ---- the positions of a step ----

// Positions (i + m·di, j + m·dj) for m < count, all with the same taps inside of the map.
struct Run {
  int64_t i, j, di, dj, count;
  unsigned inside;  // bit t: tap t; bit kMaxTaps: the cell before

  PYAR_INLINE bool has(int tap) const { return (inside >> tap & 1) != 0; }
  PYAR_INLINE bool has_cell() const { return has(kMaxTaps); }
};

class Positions {
 public:
  PYAR_INLINE Positions(const PixelRnnShape& shape, const Direction& direction) : s_(shape), d_(direction) {}

  PYAR_INLINE int64_t steps() const { return s_.diagonal ? s_.rows + s_.columns - 1 : s_.rows; }

  // Calls visit(Run) for the runs of a step.
  template <class Visit>
  PYAR_INLINE void for_runs(int64_t step, const Visit& visit) const {
    Run all = {step, 0, 0, 1, s_.columns, 0};
    if (s_.diagonal) {
      const int64_t first = step < s_.columns ? 0 : step - s_.columns + 1, last = step < s_.rows ? step : s_.rows - 1;
      all = {first, step - first, 1, -1, last - first + 1, 0};
    }
    const auto inside_at = [&](int64_t m) { return inside(all.i + m * all.di, all.j + m * all.dj); };
    for (int64_t m = 0; m < all.count;) {
      // Only the two ends of a step touch the map's edges, each another one: equal ends have equals between them.
      const unsigned here = inside_at(m);
      int64_t end = m + 1;
      if (inside_at(all.count - 1) == here)
        end = all.count;
      else if (m < all.count - 1 && inside_at(all.count - 2) == here)
        end = all.count - 1;
      visit(Run{all.i + m * all.di, all.j + m * all.dj, all.di, all.dj, end - m, here});
      m = end;
    }
  }

  // A position's place in maps of states, and in maps that both directions share.
  PYAR_INLINE int64_t place(int64_t i, int64_t j) const { return i * s_.columns + j; }
  PYAR_INLINE int64_t shared_place(int64_t i, int64_t j) const {
    return i * s_.columns + (d_.mirrored ? s_.columns - 1 - j : j);
  }

  // From one position of a run to the next.
  PYAR_INLINE int64_t stride(const Run& run) const { return run.di * s_.columns + run.dj; }
  PYAR_INLINE int64_t shared_stride(const Run& run) const {
    return run.di * s_.columns + (d_.mirrored ? -run.dj : run.dj);
  }

  PYAR_INLINE int64_t tap_place(const Tap& tap, int64_t i, int64_t j) const {
    return tap.source == Source::state ? place(i + tap.di, j + tap.dj) : shared_place(i + tap.di, j + tap.dj);
  }
  PYAR_INLINE int64_t tap_stride(const Tap& tap, const Run& run) const {
    return tap.source == Source::state ? stride(run) : shared_stride(run);
  }

 private:
  PYAR_INLINE unsigned inside(int64_t i, int64_t j) const {
    const auto is_inside = [&](int64_t di, int64_t dj) {
      return i + di >= 0 && j + dj >= 0 && j + dj < s_.columns ? 1u : 0u;
    };
    unsigned bits = is_inside(d_.cell_di, d_.cell_dj) << kMaxTaps;
    for (int t = 0; t < d_.count; ++t) bits |= is_inside(d_.tap[t].di, d_.tap[t].dj) << t;
    return bits;
  }

  const PixelRnnShape& s_;
  const Direction& d_;
};

const float* source_of(const Tap& tap, const float* x, const float* own, const float* h) {
  return tap.source == Source::input ? x : tap.source == Source::own ? own : h;
}

// ---- forward ----

// The states of one direction at all positions.
void scan(const LayerForward& f, int index) {
  const PixelRnnShape& s = f.shape;
  const Direction d = direction_of(s, index);
  const Positions positions(s, d);
  const DirectionStates& states = f.states[index];
  const int64_t units = s.units(), gates = s.gates(), depth = depth_of(d);
  const float* bias = f.weights.bias[index] + (f.weights.bias_by_sample ? f.sample * gates : 0);
  for (int64_t step = 0; step < positions.steps(); ++step) {
    positions.for_runs(step, [&](const Run& run) {
      Operand operands[kMaxTaps];
      int count = 0;
      int64_t first = 0;
      for (int t = 0; t < d.count; ++t) {
        const Tap& tap = d.tap[t];
        if (run.has(t))
          operands[count++] = {
              source_of(tap, f.x, f.own, states.h) + positions.tap_place(tap, run.i, run.j) * tap.stride,
              positions.tap_stride(tap, run) * tap.stride, tap.width, first};
        first += tap.width;
      }
      const int64_t at = positions.place(run.i, run.j), stride = positions.stride(run);
      const int64_t before = positions.place(d.cell_di, d.cell_dj);  // from a position to that of its c before
      for (int64_t block = 0; block < units / kWidth; ++block) {
        const float* weights = f.weights.forward[index] + block * depth * kBlockFloats;
        for_row_tiles(run.count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
          constexpr int M = decltype(tile)::rows;
          Vector sum[M][Cell::kGates];
          gate_sums<M>(sum, operands, count, row, weights, bias + gates_of_block(block), 0);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
            const int64_t p = at + (row + m) * stride;
            Vector c = {};
            if (run.has_cell()) c = load(states.c + (p + before) * units + block * kWidth);
            store(states.h + p * units + block * kWidth, Cell::forward(sum[m], &c));
            store(states.c + p * units + block * kWidth, c);
            if (states.gates == nullptr) continue;
#pragma GCC unroll 4
            for (int gate = 0; gate < Cell::kGates; ++gate)
              store(states.gates + p * gates + gates_of_block(block) + gate * kLanes, sum[m][gate]);
          }
        });
      }
    });
  }
}

// What the layer adds to its input comes from: h, or for two directions h from the left and, one row above, from the
// right, written to `mixed`.
const float* mix(const PixelRnnShape& s, const DirectionStates* states, float* mixed) {
  if (!s.diagonal) return states[0].h;
  const int64_t units = s.units(), columns = s.columns;
  memcpy(mixed, states[0].h, s.positions() * units * sizeof(float));
  for (int64_t i = 1; i < s.rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float* to = mixed + (i * columns + j) * units;
      const float* from = states[1].h + ((i - 1) * columns + columns - 1 - j) * units;
      for (int64_t u = 0; u < units; u += kWidth) store(to + u, load(to + u) + load(from + u));
    }
  }
  return mixed;
}

// ---- backward ----

PYAR_INLINE void add_to(float* to, const float* from, int64_t count) {
  int64_t k = 0;
  for (; k + kWidth <= count; k += kWidth) store(to + k, load(to + k) + load(from + k));
  if (k == count) return;
  const int lanes = static_cast<int>(count - k);
  store_first(to + k, load_first(to + k, lanes) + load(from + k), lanes);
}

// ∂a of one direction from ∂h of all positions, which this completes, and what it gives to the taps' sources.
void scan_back(const LayerBackward& b, int index) {
  const PixelRnnShape& s = b.shape;
  const Direction d = direction_of(s, index);
  const Positions positions(s, d);
  const DirectionStates& states = b.states[index];
  const int64_t units = s.units(), gates = s.gates();
  const int64_t before = positions.place(d.cell_di, d.cell_dj);
  int64_t columns = 0;
  for (int t = 0; t < d.count; ++t)
    if (d.tap[t].source != Source::own || b.down != nullptr) columns += padded_to_16(d.tap[t].width);
  memset(b.dc, 0, s.positions() * units * sizeof(float));
  for (int64_t step = positions.steps(); step-- > 0;) {
    positions.for_runs(step, [&](const Run& run) {
      const int64_t at = positions.place(run.i, run.j), stride = positions.stride(run);
      for (int64_t m = 0; m < run.count; ++m) {
        const int64_t p = at + m * stride;
        for (int64_t block = 0; block < units / kWidth; ++block) {
          const int64_t unit = block * kWidth, gate_at = p * gates + gates_of_block(block);
          Vector gate[Cell::kGates];
          for (int n = 0; n < Cell::kGates; ++n) gate[n] = load(states.gates + gate_at + n * kLanes);
          Vector c_before = {};
          if (run.has_cell()) c_before = load(states.c + (p + before) * units + unit);
          Vector dc = load(b.dc + p * units + unit);
          Cell::backward(gate, c_before, load(states.c + p * units + unit), load(b.dh + p * units + unit), &dc);
          if (run.has_cell()) store(b.dc + (p + before) * units + unit, dc);
          for (int n = 0; n < Cell::kGates; ++n) store(b.dgates + gate_at + n * kLanes, gate[n]);
        }
      }
      for_panels(columns / kWidth, [&](int64_t v, auto vectors) __attribute__((always_inline)) {
        constexpr int N = decltype(vectors)::count;
        for_row_tiles(run.count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
          constexpr int M = decltype(tile)::rows;
          Vector sum[M][N] = {};
          multiply_accumulate<M, N>(sum, b.dgates + (at + row * stride) * gates, stride * gates, 1,
                                    b.weights.backward[index] + v * gates * kWidth, gates, kPanelFloats);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(b.products + (row + m) * columns + (v + n) * kWidth, sum[m][n]);
        });
      });
      // Positions of one step may give to the same one: in this order, whatever the tiles are.
      for (int64_t m = 0; m < run.count; ++m) {
        const float* from = b.products + m * columns;
        for (int t = 0; t < d.count; ++t) {
          const Tap& tap = d.tap[t];
          float* map = tap.source == Source::input ? b.dx : tap.source == Source::own ? b.down : b.dh;
          if (map == nullptr) break;
          const int64_t count = tap.source == Source::state ? units : tap.width;
          if (run.has(t)) {
            const int64_t to = positions.tap_place(tap, run.i, run.j) + m * positions.tap_stride(tap, run);
            add_to(map + to * tap.stride, from, count);
          }
          from += padded_to_16(tap.width);
        }
      }
    });
  }
}

// Positions that one sum runs over before it is added to the rest: keeps long sums accurate, their operands in cache.
constexpr int64_t kSumPositions = 128;

// to [rows][to_stride] += Σ_p a[p]·b[p], where visit_lines(add) calls add(a, b, count) for lines of positions.
//   a  positions a_stride apart · b  positions b_stride apart, whole vectors
template <class Lines>
PYAR_INLINE void add_outer_products(float* to, int64_t to_stride, int64_t rows, int64_t columns, int64_t a_stride,
                                    int64_t b_stride, const Lines& visit_lines) {
  for_panels(columns / kWidth, [&](int64_t v, auto vectors) __attribute__((always_inline)) {
    constexpr int N = decltype(vectors)::count;
    for_row_tiles(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      visit_lines([&](const float* a, const float* b, int64_t count) __attribute__((always_inline)) {
        multiply_accumulate<M, N>(sum, a + row, 1, a_stride, b + v * kWidth, count, b_stride);
      });
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          float* at = to + (row + m) * to_stride + (v + n) * kWidth;
          store(at, load(at) + sum[m][n]);
        }
      }
    });
  });
}

// to [columns] += Σ_p rows[p].
void add_rows(float* to, const float* rows, int64_t stride, int64_t columns, int64_t count) {
  for (int64_t v = 0; v < columns; v += kWidth) {
    Vector sum = {};
    for (int64_t p = 0; p < count; ++p) sum += load(rows + p * stride + v);
    store(to + v, load(to + v) + sum);
  }
}

// The gradients of one direction's weights from ∂a of all positions.
void accumulate(const LayerBackward& b, int index) {
  const PixelRnnShape& s = b.shape;
  const Direction d = direction_of(s, index);
  const Positions positions(s, d);
  const int64_t gates = s.gates(), lines = s.columns < kSumPositions ? kSumPositions / s.columns : 1;
  for (int64_t first = 0; first < s.rows; first += lines) {
    const int64_t end = first + lines < s.rows ? first + lines : s.rows;
    float* to = b.gradients.taps[index];
    for (int t = 0; t < d.count; ++t) {
      const Tap& tap = d.tap[t];
      const float* source = source_of(tap, b.x, b.own, b.states[index].h);
      const int64_t begin_j = tap.dj < 0 ? -tap.dj : 0, end_j = tap.dj > 0 ? s.columns - tap.dj : s.columns;
      const bool backwards = d.mirrored && tap.source != Source::state;
      add_outer_products(to, gates, tap.width, gates, backwards ? -tap.stride : tap.stride, gates,
                         [&](const auto& add) __attribute__((always_inline)) {
                           if (end_j <= begin_j) return;
                           for (int64_t i = first + tap.di < 0 ? -tap.di : first; i < end; ++i)
                             add(source + positions.tap_place(tap, i, begin_j) * tap.stride,
                                 b.dgates + positions.place(i, begin_j) * gates, end_j - begin_j);
                         });
      to += tap.width * gates;
    }
    add_rows(b.gradients.bias[index], b.dgates + first * s.columns * gates, gates, gates, (end - first) * s.columns);
  }
}

}  // namespace

void pack_pixel_rnn_layer(const PixelRnnShape& s, const LayerWeights& weights, int64_t batch, PackedLayer packed,
                          bool with_backward) {
  const int64_t units = s.units(), gates = s.gates(), h = s.hidden;
  for (int index = 0; index < s.directions(); ++index) {
    const Direction d = direction_of(s, index);
    const auto weight = [&](int t, int64_t gate, int64_t unit, int64_t k) {
      const TapWeight& w = weights.tap[index][t];
      return unit < h && k < d.tap[t].width ? w.data[(gate * h + unit) * w.stride + k] : 0.0f;
    };
    float* forward = const_cast<float*>(packed.forward[index]);
    for (int64_t block = 0; block < units / kWidth; ++block)
      for (int t = 0; t < d.count; ++t)
        for (int64_t k = 0; k < d.tap[t].width; ++k)
          for (int64_t gate = 0; gate < Cell::kGates; ++gate)
            for (int64_t lane = 0; lane < kWidth; ++lane) *forward++ = weight(t, gate, block * kWidth + lane, k);
    float* bias = const_cast<float*>(packed.bias[index]);
    for (int64_t b = 0; b < (weights.bias_by_sample ? batch : 1); ++b)
      for (int64_t r = 0; r < gates; ++r) {
        const int64_t gate = r % kGateGroup / kLanes, unit = r / kGateGroup * kLanes + r % kLanes;
        *bias++ = unit < h ? weights.bias[index][(b * Cell::kGates + gate) * h + unit] : 0.0f;
      }
    if (!with_backward) continue;
    float* backward = const_cast<float*>(packed.backward[index]);
    int64_t column = 0;
    for (int t = 0; t < d.count; ++t)
      for (int64_t k = 0; k < padded_to_16(d.tap[t].width); ++k, ++column)
        for (int64_t r = 0; r < gates; ++r) {
          const int64_t gate = r % kGateGroup / kLanes, unit = r / kGateGroup * kLanes + r % kLanes;
          backward[(column / kPanelFloats * gates + r) * kPanelFloats + column % kPanelFloats] =
              weight(t, gate, unit, k);
        }
  }
  float* up = const_cast<float*>(packed.up);
  for (int64_t column = 0; column < padded_to_panel(s.features); ++column)
    for (int64_t k = 0; k < h; ++k)
      up[(column / kPanelFloats * h + k) * kPanelFloats + column % kPanelFloats] =
          column < s.features ? weights.up[column * h + k] : 0.0f;
  if (!with_backward) return;
  float* up_back = const_cast<float*>(packed.up_back);
  for (int64_t k = 0; k < padded_to_panel(units); ++k)
    for (int64_t f = 0; f < s.features; ++f)
      up_back[(k / kPanelFloats * s.features + f) * kPanelFloats + k % kPanelFloats] =
          k < h ? weights.up[f * h + k] : 0.0f;
}

void pixel_rnn_layer(const LayerForward& f) {
  const PixelRnnShape& s = f.shape;
  for (int index = 0; index < s.directions(); ++index) scan(f, index);
  if (f.y == nullptr) return;
  const float* mixed = mix(s, f.states, f.mixed);
  const int64_t F = s.features;
  const Operand operand = {mixed, s.units(), s.hidden, 0};
  multiply_rows(s.positions(), &operand, 1, s.hidden, f.weights.up, f.y, F,
                [&](int64_t p, int64_t v) __attribute__((always_inline)) {
                  const int lanes = lanes_at(F, v);
                  return load_first(f.x + p * F + v * kWidth, lanes) +
                         load_first(f.weights.up_bias + v * kWidth, lanes);
                });
}

void pixel_rnn_layer_backward(const LayerBackward& b) {
  const PixelRnnShape& s = b.shape;
  const int64_t F = s.features, units = s.units(), columns = s.columns;
  // ∂mixed, and from it ∂h of each direction.
  const Operand operand = {b.dy, F, F, 0};
  multiply_rows(s.positions(), &operand, 1, F, b.weights.up_back, b.dmixed, units,
                [](int64_t, int64_t) __attribute__((always_inline)) { return Vector{}; });
  memcpy(b.dx, b.dy, s.positions() * F * sizeof(float));
  if (b.down != nullptr) memset(b.down, 0, s.positions() * s.own * sizeof(float));
  for (int index = 0; index < s.directions(); ++index) {
    if (index == 0) {
      memcpy(b.dh, b.dmixed, s.positions() * units * sizeof(float));
    } else {
      memset(b.dh + (s.rows - 1) * columns * units, 0, columns * units * sizeof(float));
      for (int64_t i = 0; i + 1 < s.rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
          memcpy(b.dh + (i * columns + columns - 1 - j) * units, b.dmixed + ((i + 1) * columns + j) * units,
                 units * sizeof(float));
    }
    scan_back(b, index);
    accumulate(b, index);
  }
  // ∂up and ∂up_bias.
  const float* mixed = mix(s, b.states, b.mixed);
  const float* dy = b.dy;
  const int64_t padded = padded_to_16(F);
  if (padded != F) {  // whole vectors are read of it
    memset(b.padded_dy, 0, s.positions() * padded * sizeof(float));
    for (int64_t p = 0; p < s.positions(); ++p) memcpy(b.padded_dy + p * padded, b.dy + p * F, F * sizeof(float));
    dy = b.padded_dy;
  }
  for (int64_t first = 0; first < s.positions(); first += kSumPositions) {
    const int64_t count = first + kSumPositions < s.positions() ? kSumPositions : s.positions() - first;
    add_outer_products(b.gradients.up, padded, s.hidden, padded, units, padded,
                       [&](const auto& add)
                           __attribute__((always_inline)) { add(mixed + first * units, dy + first * padded, count); });
    add_rows(b.gradients.up_bias, dy + first * padded, padded, padded, count);
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
