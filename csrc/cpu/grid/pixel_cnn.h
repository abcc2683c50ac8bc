// The gated PixelCNN on the CPU: what pixel_cnn.cpp hands to the kernels (pixel_cnn_kernel.cpp) of the level in use.
//
// Images of rows × columns pixels, F features, L layers. The first layer reads the image's C channels and sees neither
// its own row (vertical) nor its own column (horizontal); all others read F features and do.
#pragma once

#include <stdint.h>

#include "cpu/grid/grid.h"

namespace pyar::cpu {

struct PixelCnnLayer {
  const float* vertical;         // [2F, I, taps above, k], the rows above and, but for the first layer, its own
  const float* vertical_bias;    // [2F]
  const float* horizontal;       // [2F, I, 1, taps left], the columns to the left and, but for the first, its own
  const float* horizontal_bias;  // [2F]
  const float* cross;            // [2F, 2F]
  const float* skip;             // [F, F]
  const float* skip_bias;        // [F]
  const float* residual;         // [F, F]; null in the last layer
  const float* residual_bias;    // [F]
  int64_t inputs;                // I
  int64_t reach;                 // ⌊k/2⌋
  int64_t taps;                  // above and left: reach in the first layer, reach + 1 in the others
};

struct PixelCnnModel {
  const PixelCnnLayer* layers;
  int64_t L, F, rows, columns;
  GridHead head;
};

struct PixelCnnSample {
  PixelCnnModel model;
  GridSample sample;
  const float* packed;  // by pixel_cnn_pack()
  const float* gates;   // [N, L, 4F], what the context adds to v' and h'; or null
};

// Samples first … first + n − 1 of a call, and their work space.
struct PixelCnnTile {
  int64_t first, n;
  float* space;
};

// The sizes are in floats. A tile is drawn by pixel_cnn_begin(), then for every row pixel_cnn_row() for all layers in
// turn, each on all columns (in parts, if need be, each with `sums` of its own), and pixel_cnn_pixels(), which returns
// false if a conditional is no distribution; then pixel_cnn_end().
#define PYAR_PIXEL_CNN_KERNELS                                                                                     \
  int64_t pixel_cnn_packed_size(const PixelCnnModel&);                                                             \
  void pixel_cnn_pack(const PixelCnnModel&, int64_t layer, float* packed); /* layer L: the head */                 \
  int64_t pixel_cnn_space(const PixelCnnModel&, int64_t n, bool context);                                          \
  int64_t pixel_cnn_sums(const PixelCnnModel&);                                                                    \
  void pixel_cnn_begin(const PixelCnnSample&, const PixelCnnTile&);                                                \
  void pixel_cnn_row(const PixelCnnSample&, const PixelCnnTile&, int64_t row, int64_t layer, int64_t begin_column, \
                     int64_t end_column, float* sums);                                                             \
  bool pixel_cnn_pixels(const PixelCnnSample&, const PixelCnnTile&, int64_t row);                                  \
  void pixel_cnn_end(const PixelCnnSample&, const PixelCnnTile&);

namespace baseline {
PYAR_PIXEL_CNN_KERNELS
}
namespace avx2 {
PYAR_PIXEL_CNN_KERNELS
}
namespace avx512 {
PYAR_PIXEL_CNN_KERNELS
}
#undef PYAR_PIXEL_CNN_KERNELS

}  // namespace pyar::cpu
