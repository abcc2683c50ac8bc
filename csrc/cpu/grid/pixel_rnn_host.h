// What the layers' operation and the sampler share on their way from tensors to kernels.
#pragma once

#include <optional>

#include "cpu/dispatch.h"
#include "cpu/grid/pixel_rnn.h"
#include "cpu/host.h"

namespace pyar::cpu {

// A layer's weights, checked and packed.
class PixelRnnWeights {
 public:
  PixelRnnShape shape{};
  PackedLayer packed{};

  //   own    E, the pixel's own numbers that the right direction reads
  //   batch  how many rows a bias has that is one for every sample
  PixelRnnWeights(const std::vector<Tensor>& tensors, bool diagonal, int64_t rows, int64_t columns, int64_t own,
                  int64_t batch, bool with_backward) {
    const size_t expected = diagonal ? 8 : 5;
    STD_TORCH_CHECK(tensors.size() == expected, "weights must hold ", expected, " tensors, got ", tensors.size());
    const Tensor& up = tensors[expected - 2];
    STD_TORCH_CHECK(up.dim() == 2 && up.size(0) >= 1 && up.size(1) >= 1, "up must be [F, h], got ",
                    shape_text(shape_of(up)));
    STD_TORCH_CHECK(rows >= 1 && columns >= 1, "rows and columns must be at least 1, got ", rows, " and ", columns);
    const int64_t F = up.size(0), h = up.size(1);
    shape = {rows, columns, F, own, h, diagonal};
    const Tensor& bias = tensors[2];
    STD_TORCH_CHECK(bias.dim() == 1 || bias.dim() == 2, "b must be [4h] or [B, 4h], got ", shape_text(shape_of(bias)));
    weights_.bias_by_sample = packed.bias_by_sample = bias.dim() == 2;
    std::vector<int64_t> bias_shape = {4 * h};
    if (bias.dim() == 2) bias_shape.insert(bias_shape.begin(), batch);
    for (int index = 0; index < shape.directions(); ++index) {
      const Tensor* t = &tensors[3 * index];
      const int64_t inputs = F + (index > 0 ? own : 0), taps = diagonal ? 2 : 3;
      const float* W =
          diagonal ? parameters_.keep(t[0], "W", {4 * h, inputs}) : parameters_.keep(t[0], "W", {2, 4 * h, F});
      const float* U = parameters_.keep(t[1], "U", {taps, 4 * h, h});
      weights_.bias[index] = parameters_.keep(t[2], "b", bias_shape);
      for_taps(index, W, U, [&](int t, const float* data, int64_t stride) { weights_.tap[index][t] = {data, stride}; });
    }
    weights_.up = parameters_.keep(up, "up", {F, h});
    weights_.up_bias = packed.up_bias = parameters_.keep(tensors[expected - 1], "up_bias", {F});
    pack(batch, with_backward);
  }
  PixelRnnWeights(const PixelRnnWeights&) = delete;

  // Where each tap's weights lie in W and U, the same for what they are and for their gradients.
  template <class Float, class Place>
  void for_taps(int index, Float* W, Float* U, const Place& place) const {
    const PixelRnnShape& s = shape;
    const Direction d = direction_of(s, index);
    int64_t inputs = 0, states = 0;
    for (int t = 0; t < d.count; ++t) {
      if (d.tap[t].source == Source::state) {
        place(t, U + states++ * 4 * s.hidden * s.hidden, s.hidden);
      } else if (s.diagonal) {
        place(t, W + (d.tap[t].source == Source::own ? s.features : 0), s.features + (index > 0 ? s.own : 0));
      } else {
        place(t, W + inputs++ * 4 * s.hidden * s.features, s.features);
      }
    }
  }

 private:
  void pack(int64_t batch, bool with_backward) {
    const int64_t units = shape.units(), gates = shape.gates();
    int64_t size = 0;
    const auto lay_out = [&](float* base) {
      size = 0;
      const auto part = [&](int64_t count) {
        const int64_t at = size;
        size += padded_to_16(count);
        return base == nullptr ? nullptr : base + at;
      };
      for (int index = 0; index < shape.directions(); ++index) {
        const Direction d = direction_of(shape, index);
        packed.forward[index] = part(depth_of(d) * gates);
        packed.bias[index] = part((packed.bias_by_sample ? batch : 1) * gates);
        if (with_backward) packed.backward[index] = part(padded_to_panel(columns_of(d)) * gates);
      }
      packed.up = part(padded_to_panel(shape.features) * shape.hidden);
      if (with_backward) packed.up_back = part(padded_to_panel(units) * shape.features);
    };
    lay_out(nullptr);
    space_.emplace(size);
    lay_out(space_->data());
    PYAR_FOR_THIS_CPU(pack_pixel_rnn_layer)(shape, weights_, batch, packed, with_backward);
  }

  Parameters parameters_;
  LayerWeights weights_{};
  std::optional<WorkSpace> space_;
};

// Hands out parts of a block of memory; without one, counts what is needed.
struct Parts {
  float* base;
  int64_t size = 0;

  float* take(int64_t count) {
    const int64_t at = size;
    size += padded_to_16(count);
    return base == nullptr ? nullptr : base + at;
  }
};

}  // namespace pyar::cpu
