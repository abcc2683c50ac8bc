// Layers of the Row LSTM and the Diagonal BiLSTM: what the host code and the loops have in common.
//
// A map is [rows][columns][…], one sample's. A direction runs over the map's positions in steps: the Row LSTM over
// rows, the Diagonal BiLSTM over diagonals, from the left and, with columns mirrored, from the right. Position m of a
// step is the row's column m, or the diagonal's pixel in row m. At it
//
//   (i, f, g, o) = b + Σ_taps weight_tap · source_tap     c = σ(f) c' + σ(i) tanh(g)     h = σ(o) tanh(c)
//
// where a tap's source is the layer's input x, the pixel's own numbers, or h of the step before, at position m + shift;
// c' is the c of the step before at position m; what lies outside of the map is zero. The layer's output is
// y = x + up_bias + up · mixed, mixed being the h of the one direction, or h from the left and, one row above, h from
// the right.
//
// Units are padded to groups of sixteen, whatever a level's vectors are; a group's gates i, f, g, o lie side by side,
// 64 numbers: "gates" below are [units/16][4][16].
//
// States lie step by step, so that the loops go through memory as they go through a map. In maps of "places" a step
// has room for every m, with a place beside it; those outside of the map, and of a step before the first, hold zeros.
#pragma once

#include <stdint.h>

namespace pyar::cpu {

#define PYAR_GRID_INLINE inline __attribute__((always_inline))

PYAR_GRID_INLINE constexpr int64_t padded_to_16(int64_t count) { return (count + 15) / 16 * 16; }

constexpr int kMaxTaps = 5;
constexpr int kMaxDirections = 2;

struct PixelRnnShape {
  int64_t rows, columns;
  int64_t features;  // F, of x and y
  int64_t own;       // E, of the pixel's own numbers; 0: there are none
  int64_t hidden;    // h
  bool diagonal;     // the Diagonal BiLSTM, else the Row LSTM

  PYAR_GRID_INLINE int directions() const { return diagonal ? 2 : 1; }
  PYAR_GRID_INLINE int64_t positions() const { return rows * columns; }
  PYAR_GRID_INLINE int64_t steps() const { return diagonal ? rows + columns - 1 : rows; }
  // More than any m. A pitch of places separates steps: m = −1 of one step is m = width() of the step before.
  PYAR_GRID_INLINE int64_t width() const { return diagonal ? rows : columns; }
  PYAR_GRID_INLINE int64_t pitch() const { return width() + 1; }
  PYAR_GRID_INLINE int64_t places() const { return (steps() + 1) * pitch(); }
  PYAR_GRID_INLINE int64_t units() const { return padded_to_16(hidden); }
  PYAR_GRID_INLINE int64_t gates() const { return 4 * units(); }
};

enum class Source { input, own, state };

struct Tap {
  Source source;
  int64_t shift;   // along the step; of the input, along the row
  int64_t width;   // numbers at a position that have a weight: F, E or h
  int64_t stride;  // from one position to the next in the source: F, E or units()
};

struct Direction {
  int count;
  Tap tap[kMaxTaps];
  bool mirrored;
};

PYAR_GRID_INLINE Direction direction_of(const PixelRnnShape& s, int index) {
  const auto input = [&](int64_t shift) { return Tap{Source::input, shift, s.features, s.features}; };
  const auto state = [&](int64_t shift) { return Tap{Source::state, shift, s.hidden, s.units()}; };
  if (!s.diagonal) return {5, {input(-1), input(0), state(-1), state(0), state(1)}, false};
  // The pixel's own numbers come last, so that the way back can leave out their gradient, which nobody wants.
  const Tap own{Source::own, 0, s.own, s.own};
  return {index == 0 || s.own == 0 ? 3 : 4, {input(0), state(0), state(-1), own}, index != 0};
}

// The numbers that a position's taps read, and the columns of the products on the way back, a vector of one tap each.
PYAR_GRID_INLINE int64_t depth_of(const Direction& d) {
  int64_t depth = 0;
  for (int t = 0; t < d.count; ++t) depth += d.tap[t].width;
  return depth;
}

PYAR_GRID_INLINE int64_t columns_of(const Direction& d) {
  int64_t columns = 0;
  for (int t = 0; t < d.count; ++t) columns += padded_to_16(d.tap[t].width);
  return columns;
}

// Matrices of a panel's width are padded to whole panels of four vectors, of the widest level.
PYAR_GRID_INLINE constexpr int64_t padded_to_panel(int64_t columns) { return (columns + 63) / 64 * 64; }

// A tap's weights as PyTorch has them: that of gate row r and number k is at [r·stride + k].
struct TapWeight {
  const float* data;
  int64_t stride;
};

struct LayerWeights {
  TapWeight tap[kMaxDirections][kMaxTaps];
  const float* bias[kMaxDirections];  // [4h], or [B, 4h]
  bool bias_by_sample;
  const float* up;       // [F, h]
  const float* up_bias;  // [F]
};

// The weights as the loops read them.
struct PackedLayer {
  const float* forward[kMaxDirections];   // [units/W][depth][4·W]
  const float* backward[kMaxDirections];  // [panels][gates][4·W], columns tap by tap; null: no gradients
  const float* bias[kMaxDirections];      // gates, or [B][gates]
  bool bias_by_sample;
  const float* up;       // [panels of F][h][4·W]
  const float* up_back;  // [panels of units][F][4·W]; null: no gradients
  const float* up_bias;  // [F]
};

// Of one sample, in all directions: the gates after their nonlinearities, which is all that the way back needs of the
// way forward.
PYAR_GRID_INLINE int64_t kept_size(const PixelRnnShape& s) { return s.directions() * s.positions() * s.gates(); }

struct LayerForward {
  PixelRnnShape shape;
  PackedLayer weights;
  const float* x;    // [positions][F]
  const float* own;  // [positions][E], or null
  int64_t sample;    // whose bias
  float* kept;       // [directions][positions][gates], a direction's step by step; null: not wanted
  float* y;          // [positions][F]; null: what is kept alone is wanted
  // Work space.
  float* h[kMaxDirections];  // [places][units], zeros at first
  float* c;                  // [width][units]
  float* mixed;              // [positions][units]
};

// Sums over positions and samples, zeroed at first.
struct LayerGradients {
  float* taps[kMaxDirections];  // [depth][gates]
  float* bias[kMaxDirections];  // gates; with a bias for every sample, this sample's
  float* up;                    // [h][padded_to_16(F)]
  float* up_bias;               // [padded_to_16(F)]
};

// The weights' gradients are sums over so many positions before they are added to the rest: that keeps long sums
// accurate, and their operands in cache.
constexpr int64_t kSumPositions = 128;

// Room for so many, and one step more.
PYAR_GRID_INLINE int64_t sum_positions(const PixelRnnShape& s) {
  return (s.width() > kSumPositions ? s.width() : kSumPositions) + s.width();
}

struct LayerBackward {
  PixelRnnShape shape;
  PackedLayer weights;
  const float* x;
  const float* own;
  const float* kept;
  const float* dy;  // [positions][F]
  float* dx;        // [positions][F]
  float* down;      // [positions][E]; null: not wanted
  LayerGradients gradients;
  // Work space.
  float* h[kMaxDirections];  // [places][units], zeros at first
  float* c;                  // [places][units], zeros at first
  float* mixed;              // [positions][units]
  float* dmixed;             // [positions and one more row][units]
  float* dc;                 // [width][units]
  float* dgates;             // [sum_positions][gates]
  float* products;           // [width and one more on either side][columns_of(direction)]
  float* padded_dy;          // [positions][padded_to_16(F)], if F is no multiple of 16
};

#define PYAR_PIXEL_RNN_KERNELS                                                                            \
  void pack_pixel_rnn_layer(const PixelRnnShape&, const LayerWeights&, int64_t batch, PackedLayer, bool); \
  void pixel_rnn_layer(const LayerForward&);                                                              \
  void pixel_rnn_layer_backward(const LayerBackward&);

namespace baseline {
PYAR_PIXEL_RNN_KERNELS
}
namespace avx2 {
PYAR_PIXEL_RNN_KERNELS
}
namespace avx512 {
PYAR_PIXEL_RNN_KERNELS
}
#undef PYAR_PIXEL_RNN_KERNELS

}  // namespace pyar::cpu
