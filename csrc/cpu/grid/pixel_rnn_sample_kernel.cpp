// Sampling of the Row LSTM and the Diagonal BiLSTM, for one instruction-set level: every state is computed once.
//
//   x⁰ = bias + above ∗ image + left ∗ image      a = b + Σ_taps W_tap source_tap      h, c = cell of a's gates
//   xˡ⁺¹ = xˡ + up_bias + up·mixed                outputs = head of x^L
//
// van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016; the taps are in pixel_rnn.h.
// A pixel of the Row LSTM needs the row above and the pixels to its left. The Diagonal BiLSTM's states from the left go
// along with the pixels; those from the right are computed, from right to left, when a row is drawn, for the next one.
//
// The samples of a tile are the rows of the products. A sum is one chain in the order in which the layer's operation
// has it: the features are those of log_prob to the bit, but for the first convolution, whatever the batch, the tile
// and the thread count.
#include "cpu/grid/head.h"
#include "cpu/grid/pixel_rnn_sample.h"
#include "cpu/grid/pixel_rnn_step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

constexpr int64_t kAbove = 3, kAcross = 7, kLeft = 3;  // of the first convolution
constexpr int64_t kLines = kAbove + 1;                 // of the image that are in memory

// The first convolution and the head, packed.
struct Packed {
  float* first;  // [panels of F][depth][4·W]
  float* head;
  int64_t depth, size;

  Packed(const PixelRnnModel& m, const float* base) {
    depth = (kAbove * kAcross + kLeft) * m.head.C;
    const int64_t first_size = padded_to_panel(m.shape.features) * depth;
    first = const_cast<float*>(base);
    head = base == nullptr ? nullptr : first + first_size;
    size = first_size + PackedHead(m.head, nullptr).size;
  }
};

// Work space for n samples.
struct Space {
  float* image;                // [n][kLines][columns + 6][C], a line's place by its row mod kLines, zeros beside it
  float* x;                    // [L][columns][n][F], the layers' inputs in this row
  float* h;                    // [L][2][columns][n][units]: rows in turn, or from the left and from the right
  float* c;                    // [L][columns][n][units]; the Diagonal BiLSTM's from the left has one column
  float *fresh, *c_right;      // [n][units]
  float* mixed;                // [n][units]
  float* features;             // [n][F]
  int64_t line, image_stride;  // of the image, in floats
  int64_t size;
  HeadSpace head;

  Space(const PixelRnnModel& m, int64_t n, float* base) : head(m.head, n, nullptr) {
    const PixelRnnShape& s = m.shape;
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += padded_to_16(count);
      return base == nullptr ? nullptr : base + at;
    };
    line = (s.columns + 2 * kLeft) * m.head.C;
    image_stride = kLines * line;
    image = floats(n * image_stride);
    x = floats(m.L * s.columns * n * s.features);
    h = floats(m.L * 2 * s.columns * n * s.units());
    c = floats(m.L * (s.diagonal ? 1 : s.columns) * n * s.units());
    fresh = floats(n * s.units());
    c_right = floats(n * s.units());
    mixed = floats(n * s.units());
    features = floats(n * s.features);
    size = used + head.size;
    if (base != nullptr) head = HeadSpace(m.head, n, base + used);
  }
};

class Tile {
 public:
  Tile(const PixelRnnSample& q, int64_t first, int64_t n, float* space)
      : q_(q),
        m_(q.model),
        s_(q.model.shape),
        first_(first),
        n_(n),
        map_(n * q.model.shape.units()),
        packed_(q.model, q.packed),
        head_(q.model.head, packed_.head),
        space_(q.model, n, space) {}

  bool sample() {
    memset(space_.image, 0, n_ * space_.image_stride * sizeof(float));
    for (int64_t i = 0; i < n_; ++i) space_.head.log_prob[i] = 0.0;
    for (int64_t row = 0; row < s_.rows; ++row) {
      for (int64_t column = 0; column < s_.columns; ++column) {
        features(row, column);
        if (!draw_pixel(m_.head, head_, q_.sample, space_.head, row * s_.columns + column, first_, n_, space_.features))
          return false;
        take(row, column);
      }
      if (s_.diagonal && row + 1 < s_.rows)
        for (int64_t layer = 0; layer < m_.L; ++layer) scan_from_right(row, layer);
    }
    for (int64_t i = 0; i < n_; ++i) q_.sample.log_prob[first_ + i] = static_cast<float>(space_.head.log_prob[i]);
    return true;
  }

 private:
  float* x(int64_t layer, int64_t column) const { return space_.x + (layer * s_.columns + column) * n_ * s_.features; }
  // A row's states: of the Row LSTM by its number mod 2, of the Diagonal BiLSTM from the left (0) and the right (1).
  float* h(int64_t layer, int64_t which, int64_t column) const {
    return space_.h + ((layer * 2 + which) * s_.columns + column) * map_;
  }
  float* c(int64_t layer, int64_t column) const {
    return space_.c + (s_.diagonal ? layer : layer * s_.columns + column) * map_;
  }
  // The image of the tile's first sample from `column`, counted from the left edge, on.
  float* pixels(int64_t row, int64_t column) const {
    return space_.image + (row + kLines) % kLines * space_.line + (column + kLeft) * m_.head.C;
  }

  // The last layer's output at a pixel.
  void features(int64_t row, int64_t column) {
    const int64_t C = m_.head.C, F = s_.features;
    Operand seen[kAbove + 1];
    for (int64_t above = 0; above < kAbove; ++above)
      seen[above] = {pixels(row - kAbove + above, column - kLeft), space_.image_stride, kAcross * C,
                     above * kAcross * C};
    seen[kAbove] = {pixels(row, column - kLeft), space_.image_stride, kLeft * C, kAbove * kAcross * C};
    add_bias(n_, nullptr, m_.bias, x(0, column), F);
    add_products(n_, seen, kAbove + 1, packed_.depth, packed_.first, x(0, column), F, F, Add::to_what_is_there);
    for (int64_t layer = 0; layer < m_.L; ++layer) {
      const PackedLayer& weights = m_.layers[layer];
      const float* mixed = s_.diagonal ? step_from_left(row, column, layer) : step_down(row, column, layer);
      float* output = layer + 1 < m_.L ? x(layer + 1, column) : space_.features;
      add_bias(n_, x(layer, column), weights.up_bias, output, F);
      const Operand operand = {mixed, s_.units(), s_.hidden, 0};
      add_products(n_, &operand, 1, s_.hidden, weights.up, output, F, F, Add::to_what_is_there);
    }
  }

  // The taps that are there, in the order of a direction.
  struct Taps {
    explicit Taps(const Direction& of) : direction(of) {}

    const Direction direction;
    Operand operands[kMaxTaps];
    int count = 0, tap = 0;
    int64_t first = 0;

    // The next tap's rows; null: it is outside of the image.
    void add(const float* data, int64_t stride) {
      const int64_t width = direction.tap[tap++].width;
      if (data != nullptr) operands[count++] = {data, stride, width, first};
      first += width;
    }
  };

  // The Row LSTM's state of a pixel.
  const float* step_down(int64_t row, int64_t column, int64_t layer) {
    const int64_t units = s_.units(), now = row % 2, before = 1 - now;
    const auto above = [&](int64_t j) { return row > 0 && j >= 0 && j < s_.columns ? h(layer, before, j) : nullptr; };
    Taps taps(direction_of(s_, 0));
    taps.add(column > 0 ? x(layer, column - 1) : nullptr, s_.features);
    taps.add(x(layer, column), s_.features);
    for (int64_t j = column - 1; j <= column + 1; ++j) taps.add(above(j), units);
    advance(taps, layer, 0, row > 0 ? c(layer, column) : nullptr, c(layer, column), h(layer, now, column));
    return h(layer, now, column);
  }

  // The Diagonal BiLSTM's state of a pixel from the left; returns what the layer adds up.
  const float* step_from_left(int64_t row, int64_t column, int64_t layer) {
    Taps taps(direction_of(s_, 0));
    taps.add(x(layer, column), s_.features);
    taps.add(column > 0 ? h(layer, 0, column - 1) : nullptr, s_.units());
    taps.add(row > 0 ? h(layer, 0, column) : nullptr, s_.units());
    advance(taps, layer, 0, column > 0 ? c(layer, 0) : nullptr, c(layer, 0), space_.fresh);
    float* to = h(layer, 0, column);
    memcpy(to, space_.fresh, map_ * sizeof(float));
    if (row == 0) return to;
    const float* from_right = h(layer, 1, column);
    for (int64_t i = 0; i < map_; i += kWidth) store(space_.mixed + i, load(to + i) + load(from_right + i));
    return space_.mixed;
  }

  // The states from the right of a row that is drawn.
  void scan_from_right(int64_t row, int64_t layer) {
    for (int64_t column = s_.columns; column-- > 0;) {
      Taps taps(direction_of(s_, 1));
      const bool is_first = column + 1 == s_.columns;
      taps.add(x(layer, column), s_.features);
      taps.add(is_first ? nullptr : h(layer, 1, column + 1), s_.units());
      taps.add(row > 0 ? h(layer, 1, column) : nullptr, s_.units());
      if (s_.own > 0) taps.add(pixels(row, column), space_.image_stride);
      advance(taps, layer, 1, is_first ? nullptr : space_.c_right, space_.c_right, space_.fresh);
      memcpy(h(layer, 1, column), space_.fresh, map_ * sizeof(float));
    }
  }

  // h and c after a step; no tap may read what it writes to h.
  void advance(const Taps& taps, int64_t layer, int index, const float* c_before, float* c_after, float* h_after) {
    const int64_t units = s_.units(), depth = depth_of(taps.direction);
    const PackedLayer& packed = m_.layers[layer];
    const float* bias = packed.bias[index];
    const int64_t bias_stride = packed.bias_by_sample ? s_.gates() : 0;
    for (int64_t block = 0; block < units / kWidth; ++block) {
      const float* weights = packed.forward[index] + block * depth * kBlockFloats;
      for_row_tiles(n_, [&](auto tile, int64_t row) __attribute__((always_inline)) {
        constexpr int M = decltype(tile)::rows;
        Vector sum[M][Cell::kGates];
        gate_sums<M>(sum, taps.operands, taps.count, row, weights, bias + first_ * bias_stride + gates_of_block(block),
                     bias_stride);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const int64_t at = (row + m) * units + block * kWidth;
          Vector c = {};
          if (c_before != nullptr) c = load(c_before + at);
          store(h_after + at, Cell::forward(sum[m], &c));
          store(c_after + at, c);
        }
      });
    }
  }

  // Makes a pixel's states the input of what comes after, as numbers −1 … 1.
  void take(int64_t row, int64_t column) {
    const int64_t C = m_.head.C;
    const float scale = static_cast<float>(2.0 / static_cast<double>(m_.head.K - 1));
    for (int64_t i = 0; i < n_; ++i) {
      const uint8_t* states = q_.sample.x + (first_ + i) * q_.sample.D + (row * s_.columns + column) * C;
      float* to = pixels(row, column) + i * space_.image_stride;
      for (int64_t channel = 0; channel < C; ++channel)
        to[channel] = static_cast<float>(states[channel]) * scale - 1.0f;
    }
  }

  const PixelRnnSample& q_;
  const PixelRnnModel& m_;
  const PixelRnnShape& s_;
  const int64_t first_, n_, map_;
  const Packed packed_;
  const PackedHead head_;
  const Space space_;
};

}  // namespace

int64_t pixel_rnn_packed_size(const PixelRnnModel& m) { return Packed(m, nullptr).size; }

void pixel_rnn_pack(const PixelRnnModel& m, float* base) {
  const Packed packed(m, base);
  const int64_t F = m.shape.features, C = m.head.C;
  const auto output = [F](int64_t lane) { return lane < F ? lane : -1; };
  // The rows above, then what is to the left, of every panel.
  for (int64_t panel = 0; panel * kPanelFloats < padded_to_panel(F); ++panel) {
    float* to = packed.first + panel * packed.depth * kPanelFloats;
    const auto of_panel = [&](int64_t lane) { return output(panel * kPanelFloats + lane); };
    pack_panels(m.above, C, kAbove * kAcross, 1, of_panel, to);
    pack_panels(m.left, C, kLeft, 1, of_panel, to + kAbove * kAcross * C * kPanelFloats);
  }
  PackedHead(m.head, packed.head).pack(m.head);
}

int64_t pixel_rnn_space(const PixelRnnModel& m, int64_t n) { return Space(m, n, nullptr).size; }

bool pixel_rnn_sample(const PixelRnnSample& q, int64_t first, int64_t n, float* space) {
  return Tile(q, first, n, space).sample();
}

}  // namespace pyar::cpu::PYAR_LEVEL
