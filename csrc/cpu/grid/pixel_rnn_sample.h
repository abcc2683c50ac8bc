// Sampling of the Row LSTM and the Diagonal BiLSTM: what pixel_rnn_sample.cpp hands to the kernel of the level in use.
#pragma once

#include "cpu/grid/grid.h"
#include "cpu/grid/pixel_rnn.h"

namespace pyar::cpu {

struct PixelRnnModel {
  PixelRnnShape shape;
  const PackedLayer* layers;
  int64_t L;
  const float* above;  // [F, C, 3, 7], what mask A leaves of the first convolution in the rows above the pixel
  const float* left;   // [F, C, 1, 3], and to its left
  const float* bias;   // [F]
  GridHead head;
};

struct PixelRnnSample {
  PixelRnnModel model;
  GridSample sample;
  const float* packed;  // by pixel_rnn_pack()
};

// The sizes are in floats. pixel_rnn_sample() draws samples first … first + n − 1 of the call and returns false if a
// conditional is no distribution.
#define PYAR_PIXEL_RNN_SAMPLE_KERNELS                       \
  int64_t pixel_rnn_packed_size(const PixelRnnModel&);      \
  void pixel_rnn_pack(const PixelRnnModel&, float* packed); \
  int64_t pixel_rnn_space(const PixelRnnModel&, int64_t n); \
  bool pixel_rnn_sample(const PixelRnnSample&, int64_t first, int64_t n, float* space);

namespace baseline {
PYAR_PIXEL_RNN_SAMPLE_KERNELS
}
namespace avx2 {
PYAR_PIXEL_RNN_SAMPLE_KERNELS
}
namespace avx512 {
PYAR_PIXEL_RNN_SAMPLE_KERNELS
}
#undef PYAR_PIXEL_RNN_SAMPLE_KERNELS

}  // namespace pyar::cpu
