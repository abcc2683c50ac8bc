// A layer of the Row LSTM or the Diagonal BiLSTM and its gradients, one sample at a time, for one instruction-set
// level.
//
// Forward, at every position of a step (see pixel_rnn.h):
//   a = b + Σ_taps W_tap source_tap      (i, f, g, o) = gates of a      h, c = cell      y = x + up_bias + up·mixed
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

// Positions first … first + count − 1 of a step, which all have the same taps.
struct Run {
  int64_t first, count;
  bool has_left;  // pixels to the left
};

class Steps {
 public:
  PYAR_INLINE Steps(const PixelRnnShape& shape, const Direction& direction)
      : s_(shape), mirrored_(direction.mirrored) {}

  PYAR_INLINE int64_t first(int64_t step) const {
    return s_.diagonal && step >= s_.columns ? step - s_.columns + 1 : 0;
  }
  PYAR_INLINE int64_t count(int64_t step) const {
    if (!s_.diagonal) return s_.columns;
    return (step < s_.rows ? step + 1 : s_.rows) - first(step);
  }

  // Position m's place in maps of states, and in maps that are in the image's order.
  PYAR_INLINE int64_t place(int64_t step, int64_t m) const { return (step + 1) * s_.pitch() + m + 1; }
  PYAR_INLINE int64_t shared(int64_t step, int64_t m) const {
    if (!s_.diagonal) return step * s_.columns + m;
    return m * s_.columns + (mirrored_ ? s_.columns - 1 - (step - m) : step - m);
  }
  // From one position of a step to the next, in the latter.
  PYAR_INLINE int64_t shared_stride() const {
    if (!s_.diagonal) return 1;
    return mirrored_ ? s_.columns + 1 : s_.columns - 1;
  }

  // Calls visit(Run) for the runs of a step.
  template <class Visit>
  PYAR_INLINE void for_runs(int64_t step, const Visit& visit) const {
    const int64_t begin = first(step), size = count(step), alone = s_.diagonal ? 0 : 1;
    if (alone > 0) visit(Run{begin, alone, false});
    if (size > alone) visit(Run{begin + alone, size - alone, true});
  }

 private:
  const PixelRnnShape& s_;
  const bool mirrored_;
};

// Whether a tap is inside of the map, or reads zeros of a map of places.
PYAR_INLINE bool has(const Run& run, const Tap& tap) {
  return tap.source != Source::input || tap.shift == 0 || run.has_left;
}

// ---- forward ----

// The states of one direction at all positions.
void scan(const LayerForward& f, int index) {
  const PixelRnnShape& s = f.shape;
  const Direction d = direction_of(s, index);
  const Steps steps(s, d);
  const int64_t units = s.units(), gates = s.gates(), depth = depth_of(d), stride = steps.shared_stride();
  const float* bias = f.weights.bias[index] + (f.weights.bias_by_sample ? f.sample * gates : 0);
  float* kept = f.kept == nullptr ? nullptr : f.kept + index * s.positions() * gates;
  memset(f.c, 0, s.width() * units * sizeof(float));
  for (int64_t step = 0; step < s.steps(); ++step) {
    steps.for_runs(step, [&](const Run& run) {
      Operand operands[kMaxTaps];
      int count = 0;
      int64_t first = 0;
      const int64_t before = steps.place(step - 1, run.first), here = steps.shared(step, run.first);
      for (int t = 0; t < d.count; ++t) {
        const Tap& tap = d.tap[t];
        if (tap.source == Source::state)
          operands[count++] = {f.h[index] + (before + tap.shift) * units, units, tap.width, first};
        else if (has(run, tap))
          operands[count++] = {(tap.source == Source::own ? f.own : f.x) + (here + tap.shift) * tap.stride,
                               stride * tap.stride, tap.width, first};
        first += tap.width;
      }
      float *h = f.h[index] + steps.place(step, run.first) * units, *c = f.c + run.first * units;
      for (int64_t block = 0; block < units / kWidth; ++block) {
        const float* weights = f.weights.forward[index] + block * depth * kBlockFloats;
        for_row_tiles(run.count, [&](auto tile, int64_t row) __attribute__((always_inline)) {
          constexpr int M = decltype(tile)::rows;
          Vector sum[M][Cell::kGates];
          gate_sums<M>(sum, operands, count, row, weights, bias + gates_of_block(block), 0);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
            const int64_t unit = (row + m) * units + block * kWidth;
            Vector cell = load(c + unit);
            store(h + unit, Cell::forward(sum[m], &cell));
            store(c + unit, cell);
            if (kept == nullptr) continue;
#pragma GCC unroll 4
            for (int gate = 0; gate < Cell::kGates; ++gate)
              store(kept + (row + m) * gates + gates_of_block(block) + gate * kLanes, sum[m][gate]);
          }
        });
      }
      if (kept != nullptr) kept += run.count * gates;
    });
  }
}

// What the layer adds to its input comes from: h, or for two directions h from the left and, one row above, from the
// right.
void mix(const PixelRnnShape& s, float* const* h, float* mixed) {
  const int64_t units = s.units(), columns = s.columns;
  const Steps from_left(s, direction_of(s, 0));
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < columns; ++j, mixed += units) {
      const float* left = h[0] + (s.diagonal ? from_left.place(i + j, i) : from_left.place(i, j)) * units;
      if (!s.diagonal || i == 0) {
        memcpy(mixed, left, units * sizeof(float));
        continue;
      }
      const float* right = h[1] + from_left.place(i - 1 + columns - 1 - j, i - 1) * units;
      for (int64_t u = 0; u < units; u += kWidth) store(mixed + u, load(left + u) + load(right + u));
    }
  }
}

// ---- backward ----

PYAR_INLINE void add_to(float* to, const float* from, int64_t count) {
  for (int64_t k = 0; k < count; k += kWidth) {
    const int lanes = static_cast<int>(count - k < kWidth ? count - k : kWidth);
    store_lanes(to + k, load_lanes(to + k, lanes) + load(from + k), lanes);
  }
}

// Positions in a row, of two maps.
struct Line {
  const float *a, *b;
  int64_t count;
};

// to [rows][to_stride] += Σ_p a[p]·b[p] over the positions of the lines, in their order.
//   a  positions a_stride apart · b  positions b_stride apart, whole vectors
__attribute__((noinline)) void add_outer_products(float* to, int64_t to_stride, int64_t rows, int64_t columns,
                                                  int64_t a_stride, int64_t b_stride, const Line* lines,
                                                  int64_t num_lines) {
  for_panels(columns / kWidth, [&](int64_t v, auto vectors) __attribute__((always_inline)) {
    constexpr int N = decltype(vectors)::count;
    for_row_tiles(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      for (const Line* line = lines; line < lines + num_lines; ++line)
        multiply_accumulate<M, N>(sum, line->a + row, 1, a_stride, line->b + v * kWidth, line->count, b_stride);
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

// to [columns] += Σ_p rows[p], by sums of a few rows.
void add_rows(float* to, const float* rows, int64_t stride, int64_t columns, int64_t count) {
  constexpr int64_t kFew = 16;
  for (int64_t v = 0; v < columns; v += kWidth) {
    Vector total = {};
    for (int64_t first = 0; first < count; first += kFew) {
      Vector sum = {};
      for (int64_t p = first; p < count && p < first + kFew; ++p) sum += load(rows + p * stride + v);
      total += sum;
    }
    store(to + v, load(to + v) + total);
  }
}

// One direction on the way back.
class ScanBack {
 public:
  ScanBack(const LayerBackward& b, int index)
      : b_(b), s_(b.shape), index_(index), d_(direction_of(s_, index)), steps_(s_, d_) {
    for (int t = 0; t < d_.count; ++t) {
      at_[t] = columns_;
      if (d_.tap[t].source == Source::state) state_taps_[num_state_taps_++] = t;
      if (d_.tap[t].source != Source::own || b.down != nullptr) columns_ += padded_to_16(d_.tap[t].width);
    }
  }

  // The gradients of the weights, and what the taps' sources receive.
  void run() {
    restore_cells();
    memset(b_.dc, 0, s_.width() * units_ * sizeof(float));
    memset(b_.products, 0, (s_.width() + 2) * columns_ * sizeof(float));
    const float* kept = b_.kept + (index_ + 1) * s_.positions() * gates_;
    int64_t waiting = 0, last = s_.steps() - 1;  // of the sums: positions, and the step where they begin
    for (int64_t step = last; step >= 0; --step) {
      const int64_t count = steps_.count(step);
      float* dgates = b_.dgates + waiting * gates_;
      kept -= count * gates_;
      cells_back(step, kept, dgates);
      products(step, dgates);
      inputs_back(step);
      // The sums read h of the step before theirs, which is there by now.
      if (waiting > 0 && waiting + count > kSumPositions) {
        accumulate(last, step + 1, waiting);
        memmove(b_.dgates, dgates, count * gates_ * sizeof(float));
        waiting = 0;
        last = step;
      }
      waiting += count;
    }
    accumulate(last, 0, waiting);
  }

 private:
  // c of every position from its gates, with the operations of the way forward.
  void restore_cells() const {
    const float* gates = b_.kept + index_ * s_.positions() * gates_;
    for (int64_t step = 0; step < s_.steps(); ++step) {
      float* c = b_.c + steps_.place(step, steps_.first(step)) * units_;
      for (int64_t m = steps_.count(step); m > 0; --m, c += units_, gates += gates_)
        for (int64_t block = 0; block < units_ / kWidth; ++block) {
          const float* gate = gates + gates_of_block(block);
          const Vector before = load(c + block * kWidth - s_.pitch() * units_);
          store(c + block * kWidth,
                fused_multiply_add(load(gate + kLanes), before, load(gate) * load(gate + 2 * kLanes)));
        }
    }
  }

  // ∂a of a step from ∂mixed and from what the step after it gives; h comes along.
  void cells_back(int64_t step, const float* kept, float* dgates) const {
    const int64_t first = steps_.first(step), count = steps_.count(step), place = steps_.place(step, first);
    // h from the right is added one row below.
    const float* dmixed = b_.dmixed + (steps_.shared(step, first) + (index_ == 0 ? 0 : s_.columns)) * units_;
    const int64_t next = steps_.shared_stride() * units_, before = s_.pitch() * units_;
    const float *c = b_.c + place * units_, *given[kMaxTaps];
    float *h = b_.h[index_] + place * units_, *dc = b_.dc + first * units_;
    for (int t = 0; t < num_state_taps_; ++t) {
      const int tap = state_taps_[t];
      given[t] = b_.products + (first + 1 - d_.tap[tap].shift) * columns_ + at_[tap];
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t block = 0; block < units_ / kWidth; ++block) {
        const int64_t unit = block * kWidth, gate_at = i * gates_ + gates_of_block(block);
        Vector dh = load(dmixed + i * next + unit);
        for (int t = 0; t < num_state_taps_; ++t) dh += load(given[t] + i * columns_ + unit);
        Vector gate[Cell::kGates];
        for (int n = 0; n < Cell::kGates; ++n) gate[n] = load(kept + gate_at + n * kLanes);
        const int64_t at = i * units_ + unit;
        const Vector cell = load(c + at);
        Vector dcell = load(dc + at);
        store(h + at, gate[3] * cell_tanh(cell));
        Cell::backward(gate, load(c + at - before), cell, dh, &dcell);
        store(dc + at, dcell);
        for (int n = 0; n < Cell::kGates; ++n) store(dgates + gate_at + n * kLanes, gate[n]);
      }
    }
  }

  // What every position of a step gives to its taps' sources: of position m row m + 1, zeros beside the step.
  void products(int64_t step, const float* dgates) const {
    const int64_t first = steps_.first(step), count = steps_.count(step);
    float* to = b_.products + (first + 1) * columns_;
    const Operand operand = {dgates, gates_, gates_, 0};
    add_products(count, &operand, 1, gates_, b_.weights.backward[index_], to, columns_, columns_, Add::to_zero);
    memset(to - columns_, 0, columns_ * sizeof(float));
    memset(to + count * columns_, 0, columns_ * sizeof(float));
  }

  // ∂x, and the gradient of the pixels' own numbers, in the order of the positions, whatever the tiles are.
  void inputs_back(int64_t step) const {
    const int64_t first = steps_.first(step), count = steps_.count(step), stride = steps_.shared_stride();
    const int64_t here = steps_.shared(step, first);
    for (int t = 0; t < d_.count; ++t) {
      const Tap& tap = d_.tap[t];
      float* map = tap.source == Source::input ? b_.dx : tap.source == Source::own ? b_.down : nullptr;
      if (map == nullptr) continue;
      for (int64_t i = tap.shift < 0 ? 1 : 0; i < count; ++i)
        add_to(map + (here + i * stride + tap.shift) * tap.stride, b_.products + (first + i + 1) * columns_ + at_[t],
               tap.width);
    }
  }

  // The gradients of the weights from ∂a of steps last, last − 1, … end, which lie so, `count` positions in all.
  void accumulate(int64_t last, int64_t end, int64_t count) const {
    float* to = b_.gradients.taps[index_];
    for (int t = 0; t < d_.count; ++t) {
      const Tap& tap = d_.tap[t];
      const bool is_state = tap.source == Source::state;
      const float* source = is_state ? b_.h[index_] : tap.source == Source::own ? b_.own : b_.x;
      const int64_t stride = (is_state ? 1 : steps_.shared_stride()) * tap.stride;
      const int64_t absent = !is_state && tap.shift < 0 ? 1 : 0;  // the first position's has none
      Line lines[kSumPositions];
      int64_t num_lines = 0;
      const float* dgates = b_.dgates + count * gates_;
      for (int64_t step = end; step <= last; ++step) {
        const int64_t m = steps_.first(step) + absent, positions = steps_.count(step);
        dgates -= positions * gates_;
        const int64_t at = is_state ? steps_.place(step - 1, m) : steps_.shared(step, m);
        if (positions > absent)
          lines[num_lines++] = {source + (at + tap.shift) * tap.stride, dgates + absent * gates_, positions - absent};
      }
      add_outer_products(to, gates_, tap.width, gates_, stride, gates_, lines, num_lines);
      to += tap.width * gates_;
    }
    add_rows(b_.gradients.bias[index_], b_.dgates, gates_, gates_, count);
  }

  const LayerBackward& b_;
  const PixelRnnShape& s_;
  const int index_;
  const Direction d_;
  const Steps steps_;
  const int64_t units_ = s_.units(), gates_ = s_.gates();
  int64_t columns_ = 0;   // of the products
  int64_t at_[kMaxTaps];  // a tap's first
  int state_taps_[kMaxTaps], num_state_taps_ = 0;
};

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
  mix(s, f.h, f.mixed);
  const int64_t F = s.features;
  add_bias(s.positions(), f.x, f.weights.up_bias, f.y, F);
  const Operand operand = {f.mixed, s.units(), s.hidden, 0};
  add_products(s.positions(), &operand, 1, s.hidden, f.weights.up, f.y, F, F, Add::to_what_is_there);
}

void pixel_rnn_layer_backward(const LayerBackward& b) {
  const PixelRnnShape& s = b.shape;
  const int64_t F = s.features, units = s.units();
  const Operand operand = {b.dy, F, F, 0};
  add_products(s.positions(), &operand, 1, F, b.weights.up_back, b.dmixed, units, units, Add::to_zero);
  memset(b.dmixed + s.positions() * units, 0, s.columns * units * sizeof(float));
  memcpy(b.dx, b.dy, s.positions() * F * sizeof(float));
  if (b.down != nullptr) memset(b.down, 0, s.positions() * s.own * sizeof(float));
  for (int index = 0; index < s.directions(); ++index) ScanBack(b, index).run();
  // ∂up and ∂up_bias.
  mix(s, b.h, b.mixed);
  const float* dy = b.dy;
  const int64_t padded = padded_to_16(F);
  if (padded != F) {  // whole vectors are read of it
    memset(b.padded_dy, 0, s.positions() * padded * sizeof(float));
    for (int64_t p = 0; p < s.positions(); ++p) memcpy(b.padded_dy + p * padded, b.dy + p * F, F * sizeof(float));
    dy = b.padded_dy;
  }
  for (int64_t first = 0; first < s.positions(); first += kSumPositions) {
    const int64_t count = first + kSumPositions < s.positions() ? kSumPositions : s.positions() - first;
    const Line line = {b.mixed + first * units, dy + first * padded, count};
    add_outer_products(b.gradients.up, padded, s.hidden, padded, units, padded, &line, 1);
    add_rows(b.gradients.up_bias, dy + first * padded, padded, padded, count);
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
