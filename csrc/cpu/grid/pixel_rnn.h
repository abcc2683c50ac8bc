// Layers of the Row LSTM and the Diagonal BiLSTM: what the host code and the loops have in common.
//
// A map is [rows][columns][…], one sample's. A direction runs over the map's positions in steps: the Row LSTM over
// rows, the Diagonal BiLSTM over diagonals, from the left and, with columns mirrored, from the right. At position (i,
// j)
//
//   (i, f, g, o) = b + Σ_taps weight_tap · source_tap(i + di, j + dj)     c = σ(f) c' + σ(i) tanh(g)     h = σ(o)
//   tanh(c)
//
// where a tap's source is the layer's input x, the pixel's own numbers, or the direction's h; c' is the c of one
// neighbour; what lies outside of the map is zero. The layer's output is y = x + up_bias + up · mixed, mixed being the
// h of the one direction, or h from the left and, one row above, h from the right.
//
// Units are padded to groups of sixteen, whatever a level's vectors are; a group's gates i, f, g, o lie side by side,
// 64 numbers: "gates" below are [units/16][4][16].
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
  PYAR_GRID_INLINE int64_t units() const { return padded_to_16(hidden); }
  PYAR_GRID_INLINE int64_t gates() const { return 4 * units(); }
};

enum class Source { input, own, state };

struct Tap {
  Source source;
  int64_t di, dj;
  int64_t width;   // numbers at a position that have a weight: F, E or h
  int64_t stride;  // from one position to the next in the source: F, E or units()
};

struct Direction {
  int count;
  Tap tap[kMaxTaps];
  bool mirrored;
  int64_t cell_di, cell_dj;  // whose c
};

PYAR_GRID_INLINE Direction direction_of(const PixelRnnShape& s, int index) {
  const auto input = [&](int64_t dj) { return Tap{Source::input, 0, dj, s.features, s.features}; };
  const auto state = [&](int64_t di, int64_t dj) { return Tap{Source::state, di, dj, s.hidden, s.units()}; };
  if (!s.diagonal) return {5, {input(-1), input(0), state(-1, -1), state(-1, 0), state(-1, 1)}, false, -1, 0};
  // The pixel's own numbers come last, so that the way back can leave out their gradient, which nobody wants.
  const Tap own{Source::own, 0, 0, s.own, s.own};
  return {index == 0 || s.own == 0 ? 3 : 4, {input(0), state(0, -1), state(-1, 0), own}, index != 0, 0, -1};
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

// One sample's states of one direction, in the order in which the direction sees the positions.
struct DirectionStates {
  float* gates;  // [positions][gates], after their nonlinearities; null: not wanted
  float* h;      // [positions][units]
  float* c;      // [positions][units]
};

PYAR_GRID_INLINE int64_t states_size(const PixelRnnShape& s) {
  return s.directions() * s.positions() * (s.gates() + 2 * s.units());
}

PYAR_GRID_INLINE DirectionStates states_at(const PixelRnnShape& s, float* base, int direction) {
  base += direction * s.positions() * (s.gates() + 2 * s.units());
  float* h = base + s.positions() * s.gates();
  return {base, h, h + s.positions() * s.units()};
}

struct LayerForward {
  PixelRnnShape shape;
  PackedLayer weights;
  const float* x;    // [positions][F]
  const float* own;  // [positions][E], or null
  int64_t sample;    // whose bias
  DirectionStates states[kMaxDirections];
  float* mixed;  // [positions][units], work space
  float* y;      // [positions][F]; null: the states alone are wanted
};

// Sums over positions and samples, zeroed at first.
struct LayerGradients {
  float* taps[kMaxDirections];  // [depth][gates]
  float* bias[kMaxDirections];  // gates; with a bias for every sample, this sample's
  float* up;                    // [h][padded_to_16(F)]
  float* up_bias;               // [padded_to_16(F)]
};

struct LayerBackward {
  PixelRnnShape shape;
  PackedLayer weights;
  const float* x;
  const float* own;
  DirectionStates states[kMaxDirections];
  const float* dy;  // [positions][F]
  float* dx;        // [positions][F]
  float* down;      // [positions][E]; null: not wanted
  LayerGradients gradients;
  // Work space.
  float* mixed;      // [positions][units]
  float* dmixed;     // [positions][units]
  float* dh;         // [positions][units]
  float* dc;         // [positions][units]
  float* dgates;     // [positions][gates]
  float* padded_dy;  // [positions][padded_to_16(F)], if F is no multiple of 16
  float* products;   // [positions of a step][columns_of(direction)]
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
