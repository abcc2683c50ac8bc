// Layers of the Row LSTM and the Diagonal BiLSTM on the CPU: checks, memory, threads. The loops are in
// pixel_rnn_layer_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "cpu/dispatch.h"
#include "cpu/grid/pixel_rnn_host.h"
#include "cpu/large_pages.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

// The weights' gradients are sums over so many groups of samples, each in order: a matter of the batch alone, so that
// the number of threads changes nothing.
constexpr int64_t kGroups = 32;

float* numbers(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// A layer's maps, checked, and its weights.
struct Layer {
  Parameters parameters;
  int64_t batch;
  const PixelRnnWeights weights;
  const PixelRnnShape& shape;
  const PackedLayer& packed;
  const float* x;
  const float* own;

  Layer(const Tensor& x_map, const std::optional<Tensor>& own_map, const std::vector<Tensor>& tensors, bool diagonal,
        bool with_backward)
      : batch(batch_of(x_map, own_map, diagonal)),
        weights(tensors, diagonal, x_map.size(1), x_map.size(2), own_map.has_value() ? own_map->size(3) : 0, batch,
                with_backward),
        shape(weights.shape),
        packed(weights.packed),
        x(parameters.keep(x_map, "x", {batch, shape.rows, shape.columns, shape.features})),
        own(shape.own > 0 ? parameters.keep(*own_map, "own", {batch, shape.rows, shape.columns, shape.own}) : nullptr) {
  }
  Layer(const Layer&) = delete;

 private:
  static int64_t batch_of(const Tensor& x_map, const std::optional<Tensor>& own_map, bool diagonal) {
    STD_TORCH_CHECK(x_map.dim() == 4, "x must be [B, rows, columns, F], got ", shape_text(shape_of(x_map)));
    if (own_map.has_value())
      STD_TORCH_CHECK(diagonal && own_map->dim() == 4 && own_map->size(3) >= 1,
                      "own must be [B, rows, columns, E], of the Diagonal BiLSTM alone, got ",
                      shape_text(shape_of(*own_map)));
    return x_map.size(0);
  }
};

// Work space of the way forward, with zeros where states lie.
class StatesSpace {
 public:
  StatesSpace(LayerForward& f, const PixelRnnShape& s) : space_(lay_out(f, s, nullptr)) {
    std::memset(space_.data(), 0, lay_out(f, s, space_.data()) * sizeof(float));
  }

 private:
  static int64_t lay_out(LayerForward& f, const PixelRnnShape& s, float* base) {
    Parts parts{base};
    for (int index = 0; index < s.directions(); ++index) f.h[index] = parts.take(s.places() * s.units());
    f.c = parts.take(s.width() * s.units());
    f.mixed = parts.take(s.positions() * s.units());
    return parts.size;
  }

  const WorkSpace space_;
};

std::tuple<Tensor, Tensor> pixel_rnn_layer(Tensor x, std::optional<Tensor> own, std::vector<Tensor> weights,
                                           bool diagonal, bool keep) {
  const Layer layer(x, own, weights, diagonal, false);
  const PixelRnnShape& s = layer.shape;
  const int64_t each = kept_size(s), map = s.positions() * s.features;
  Tensor y = torch::stable::new_empty(x, {layer.batch, s.rows, s.columns, s.features});
  Tensor kept = torch::stable::new_empty(x, {keep ? layer.batch * each : 0});
  float* gates = numbers(kept);
  prefer_large_pages(gates, keep ? layer.batch * each * int64_t{sizeof(float)} : 0);
  const auto run = PYAR_FOR_THIS_CPU(pixel_rnn_layer);
  Crew crew;
  const int64_t pieces = std::min<int64_t>(layer.batch, 8 * crew.size());
  crew.share(pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = layer.batch * piece / pieces, end = layer.batch * (piece + 1) / pieces;
    LayerForward f{};
    f.shape = s;
    f.weights = layer.packed;
    const StatesSpace space(f, s);
    for (int64_t b = begin; b < end; ++b) {
      f.x = layer.x + b * map;
      f.own = layer.own == nullptr ? nullptr : layer.own + b * s.positions() * s.own;
      f.sample = b;
      f.kept = keep ? gates + b * each : nullptr;
      f.y = numbers(y) + b * map;
      run(f);
    }
  });
  return {y, kept};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> pixel_rnn_layer_backward(Tensor grad, Tensor x,
                                                                         std::optional<Tensor> own,
                                                                         std::vector<Tensor> weights, Tensor kept,
                                                                         bool diagonal, bool own_gradient) {
  const Layer layer(x, own, weights, diagonal, true);
  const PixelRnnShape& s = layer.shape;
  const int64_t each = kept_size(s), map = s.positions() * s.features, units = s.units(), gates = s.gates();
  const bool is_kept = kept.numel() > 0;
  Parameters others;
  const float* dy = others.keep(grad, "grad", {layer.batch, s.rows, s.columns, s.features});
  const float* of_forward = others.keep(kept, "kept", {is_kept ? layer.batch * each : 0});
  STD_TORCH_CHECK(!own_gradient || s.own > 0, "own has no gradient, since there is none");
  Tensor dx = torch::stable::new_empty(x, {layer.batch, s.rows, s.columns, s.features});
  Tensor down = torch::stable::new_empty(x, {own_gradient ? layer.batch : 0, s.rows, s.columns, s.own});
  std::vector<Tensor> gradients;
  for (const Tensor& w : weights) gradients.push_back(torch::stable::new_empty(w, shape_of(w)));

  // The sums of every group, and the biases' of every sample where each has its own.
  const int64_t groups = std::min<int64_t>(layer.batch, kGroups);
  const bool by_sample = layer.packed.bias_by_sample;
  const auto sums = [&](Parts& parts, LayerGradients& g) {
    for (int index = 0; index < s.directions(); ++index) {
      g.taps[index] = parts.take(depth_of(direction_of(s, index)) * gates);
      g.bias[index] = parts.take(by_sample ? 0 : gates);
    }
    g.up = parts.take(s.hidden * padded_to_16(s.features));
    g.up_bias = parts.take(padded_to_16(s.features));
  };
  LayerGradients total{};
  Parts counted{nullptr};
  sums(counted, total);
  const int64_t sums_size = counted.size;
  const WorkSpace group_sums(std::max<int64_t>(groups, 1) * sums_size);
  const WorkSpace sample_bias(by_sample ? layer.batch * s.directions() * gates : 0);

  const int64_t widest = columns_of(direction_of(s, s.directions() - 1));
  const auto forward = PYAR_FOR_THIS_CPU(pixel_rnn_layer);
  const auto run = PYAR_FOR_THIS_CPU(pixel_rnn_layer_backward);
  Crew crew;
  crew.share(groups, [&](int64_t group, int64_t) {
    LayerBackward b{};
    b.shape = s;
    b.weights = layer.packed;
    float* again = nullptr;
    const auto lay_out = [&](Parts parts) {
      for (int index = 0; index < s.directions(); ++index) b.h[index] = parts.take(s.places() * units);
      b.c = parts.take(s.places() * units);
      const int64_t zeros = parts.size;
      b.mixed = parts.take(s.positions() * units);
      b.dmixed = parts.take((s.positions() + s.columns) * units);
      b.dc = parts.take(s.width() * units);
      b.dgates = parts.take(sum_positions(s) * gates);
      b.products = parts.take((s.width() + 2) * widest);
      b.padded_dy = parts.take(s.features % 16 == 0 ? 0 : s.positions() * padded_to_16(s.features));
      again = parts.take(is_kept ? 0 : each);
      return std::pair{parts.size, zeros};
    };
    const WorkSpace space(lay_out(Parts{nullptr}).first);
    std::memset(space.data(), 0, lay_out(Parts{space.data()}).second * sizeof(float));
    LayerForward f{};
    std::optional<StatesSpace> states;
    if (!is_kept) {
      f.shape = s;
      f.weights = layer.packed;
      f.kept = again;
      states.emplace(f, s);
    }
    float* of_group = group_sums.data() + group * sums_size;
    std::memset(of_group, 0, sums_size * sizeof(float));
    Parts parts{of_group};
    sums(parts, b.gradients);
    for (int64_t i = layer.batch * group / groups; i < layer.batch * (group + 1) / groups; ++i) {
      b.x = layer.x + i * map;
      b.own = layer.own == nullptr ? nullptr : layer.own + i * s.positions() * s.own;
      b.dy = dy + i * map;
      b.dx = numbers(dx) + i * map;
      b.down = own_gradient ? numbers(down) + i * s.positions() * s.own : nullptr;
      b.kept = is_kept ? of_forward + i * each : again;
      for (int index = 0; by_sample && index < s.directions(); ++index) {
        b.gradients.bias[index] = sample_bias.data() + (i * s.directions() + index) * gates;
        std::memset(b.gradients.bias[index], 0, gates * sizeof(float));
      }
      if (!is_kept) {
        f.x = b.x;
        f.own = b.own;
        f.sample = i;
        forward(f);
      }
      run(b);
    }
  });

  float* all = group_sums.data();
  if (groups == 0) std::memset(all, 0, sums_size * sizeof(float));
  // Pairs, pairs of pairs, …: short sums, in one order.
  for (int64_t distance = 1; distance < groups; distance *= 2)
    for (int64_t group = 0; group + distance < groups; group += 2 * distance)
      for (int64_t k = 0; k < sums_size; ++k) all[group * sums_size + k] += all[(group + distance) * sums_size + k];
  Parts parts{all};
  sums(parts, total);
  // From [units/16][4][16] to [4][h].
  const auto place_of = [](int64_t gate, int64_t unit) { return unit / 16 * 64 + gate * 16 + unit % 16; };
  for (int index = 0; index < s.directions(); ++index) {
    Tensor* g = &gradients[3 * index];
    const Direction d = direction_of(s, index);
    const float* from = total.taps[index];
    layer.weights.for_taps(index, numbers(g[0]), numbers(g[1]), [&](int t, float* to, int64_t stride) {
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t unit = 0; unit < s.hidden; ++unit)
          for (int64_t k = 0; k < d.tap[t].width; ++k)
            to[(gate * s.hidden + unit) * stride + k] = from[k * gates + place_of(gate, unit)];
      from += d.tap[t].width * gates;
    });
    for (int64_t b = 0; b < (by_sample ? layer.batch : 1); ++b) {
      const float* bias = by_sample ? sample_bias.data() + (b * s.directions() + index) * gates : total.bias[index];
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t unit = 0; unit < s.hidden; ++unit)
          numbers(g[2])[(b * 4 + gate) * s.hidden + unit] = bias[place_of(gate, unit)];
    }
  }
  Tensor* last = &gradients[gradients.size() - 2];
  for (int64_t f = 0; f < s.features; ++f) {
    for (int64_t k = 0; k < s.hidden; ++k)
      numbers(last[0])[f * s.hidden + k] = total.up[k * padded_to_16(s.features) + f];
    numbers(last[1])[f] = total.up_bias[f];
  }
  return {dx, down, gradients};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("pixel_rnn_layer", TORCH_BOX(&pixel_rnn_layer));
  m.impl("pixel_rnn_layer_backward", TORCH_BOX(&pixel_rnn_layer_backward));
}

}  // namespace
}  // namespace pyar::cpu
