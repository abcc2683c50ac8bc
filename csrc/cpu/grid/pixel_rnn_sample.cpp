// Sampling of the Row LSTM and the Diagonal BiLSTM on the CPU: checks, memory, threads. The loops are in
// pixel_rnn_sample_kernel.cpp.
#include "cpu/grid/pixel_rnn_sample.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <optional>
#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/grid/host.h"
#include "cpu/grid/pixel_rnn_host.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

// Samples of a tile: enough that a load of the weights serves several, few enough that what they keep stays in the
// caches.
constexpr int64_t kTileSamples = 18;

std::tuple<Tensor, Tensor> pixel_rnn_sample(std::vector<Tensor> first, std::vector<Tensor> layers,
                                            std::vector<Tensor> head, bool diagonal, int64_t rows, int64_t columns,
                                            int64_t num_states, int64_t mixtures, Tensor seed, int64_t num_samples,
                                            int64_t first_index, double temperature, std::optional<Tensor> given,
                                            std::optional<Tensor> dims) {
  const size_t each = diagonal ? 8 : 5;
  STD_TORCH_CHECK(first.size() == 3, "first must hold above, left and bias, got ", first.size(), " tensors");
  STD_TORCH_CHECK(!layers.empty() && layers.size() % each == 0, "layers must hold ", each, " tensors a layer, got ",
                  layers.size());
  STD_TORCH_CHECK(rows >= 1 && columns >= 1, "rows and columns must be at least 1, got ", rows, " and ", columns);
  Parameters parameters;
  PixelRnnSample q{};
  PixelRnnModel& m = q.model;
  m.head = checked_head(parameters, head, num_states, mixtures);
  const int64_t C = m.head.C, F = m.head.F, n = num_samples;
  m.above = parameters.keep(first[0], "above", {F, C, 3, 7});
  m.left = parameters.keep(first[1], "left", {F, C, 1, 3});
  m.bias = parameters.keep(first[2], "bias", {F});
  GridCall call(m.head, rows * columns, seed, num_samples, first_index, temperature, given, dims, head[0]);
  q.sample = call.sample;
  std::deque<PixelRnnWeights> weights;  // which do not move
  std::vector<PackedLayer> packed_layers;
  for (size_t l = 0; l < layers.size(); l += each) {
    const std::vector<Tensor> own(layers.begin() + l, layers.begin() + l + each);
    weights.emplace_back(own, diagonal, rows, columns, diagonal ? C : 0, n, false);
    const PixelRnnShape& shape = weights.back().shape;
    STD_TORCH_CHECK(shape.features == F && shape.hidden == weights.front().shape.hidden,
                    "all layers must have the sizes of the first and the head's F, got up ",
                    shape_text(shape_of(own[each - 2])));
    packed_layers.push_back(weights.back().packed);
  }
  m.shape = weights.front().shape;
  m.layers = packed_layers.data();
  m.L = static_cast<int64_t>(packed_layers.size());
  if (n == 0) return call.results();

  const WorkSpace packed(PYAR_FOR_THIS_CPU(pixel_rnn_packed_size)(m));
  PYAR_FOR_THIS_CPU(pixel_rnn_pack)(m, packed.data());
  q.packed = packed.data();
  const auto run = PYAR_FOR_THIS_CPU(pixel_rnn_sample);
  const auto space_of = PYAR_FOR_THIS_CPU(pixel_rnn_space);
  std::atomic<bool> good{true};
  Crew crew;
  const int64_t threads = std::min(crew.size(), n);
  const int64_t tiles = (n + threads * kTileSamples - 1) / (threads * kTileSamples) * threads;
  crew.share(tiles, [&](int64_t tile, int64_t) {
    const int64_t begin = n * tile / tiles, count = n * (tile + 1) / tiles - begin;
    const WorkSpace space(space_of(m, count));
    if (!run(q, begin, count, space.data())) good = false;
  });
  check_drawn(good);
  return call.results();
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) { m.impl("pixel_rnn_sample", TORCH_BOX(&pixel_rnn_sample)); }

}  // namespace
}  // namespace pyar::cpu
