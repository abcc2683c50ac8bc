// PixelCNN's sampling on the CPU: checks, memory, threads. The loops are in pixel_cnn_kernel.cpp.
#include "cpu/grid/pixel_cnn.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <tuple>

#include "cpu/dispatch.h"
#include "cpu/grid/host.h"
#include "cpu/host.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

constexpr size_t kTensorsOfLayer = 9;

struct Model {
  Parameters parameters;
  std::vector<PixelCnnLayer> layers;
  PixelCnnModel view{};

  Model(const std::vector<Tensor>& tensors, const std::vector<Tensor>& head, int64_t rows, int64_t columns,
        int64_t num_states, int64_t mixtures) {
    STD_TORCH_CHECK(rows >= 1 && columns >= 1, "rows and columns must be at least 1, got ", rows, " and ", columns);
    view.head = checked_head(parameters, head, num_states, mixtures);
    const int64_t F = view.head.F, C = view.head.C;
    STD_TORCH_CHECK(!tensors.empty() && (tensors.size() + 2) % kTensorsOfLayer == 0,
                    "layers must hold 9 tensors a layer but for the last one's 7, got ", tensors.size());
    const int64_t L = static_cast<int64_t>((tensors.size() + 2) / kTensorsOfLayer);
    for (int64_t l = 0; l < L; ++l) {
      const Tensor* t = &tensors[l * kTensorsOfLayer];
      STD_TORCH_CHECK(t[0].dim() == 4, "vertical must be [2F, I, rows, k], got ", shape_text(shape_of(t[0])));
      const int64_t k = t[0].size(3);
      PixelCnnLayer layer{};
      layer.inputs = l == 0 ? C : F;
      layer.reach = k / 2;
      layer.taps = layer.reach + (l == 0 ? 0 : 1);
      STD_TORCH_CHECK(k % 2 == 1 && layer.reach >= 1, "kernel sizes must be odd and at least 3, got ", k);
      STD_TORCH_CHECK(l < 2 || layer.reach == layers[1].reach,
                      "all layers but the first must have the same kernel size, got ", k, " and ",
                      2 * layers[1].reach + 1);
      layer.vertical = parameters.keep(t[0], "vertical", {2 * F, layer.inputs, layer.taps, k});
      layer.vertical_bias = parameters.keep(t[1], "vertical bias", {2 * F});
      layer.horizontal = parameters.keep(t[2], "horizontal", {2 * F, layer.inputs, 1, layer.taps});
      layer.horizontal_bias = parameters.keep(t[3], "horizontal bias", {2 * F});
      layer.cross = parameters.keep(t[4], "cross", {2 * F, 2 * F, 1, 1});
      layer.skip = parameters.keep(t[5], "skip", {F, F, 1, 1});
      layer.skip_bias = parameters.keep(t[6], "skip bias", {F});
      if (l + 1 < L) {
        layer.residual = parameters.keep(t[7], "residual", {F, F, 1, 1});
        layer.residual_bias = parameters.keep(t[8], "residual bias", {F});
      }
      layers.push_back(layer);
    }
    view.layers = layers.data();
    view.L = L;
    view.F = F;
    view.rows = rows;
    view.columns = columns;
  }
  Model(const Model&) = delete;
};

// Samples of a tile: enough that the weights are read seldom, few enough that what they keep stays in the caches.
constexpr int64_t kTileSamples = 16;

std::tuple<Tensor, Tensor> pixel_cnn_sample(std::vector<Tensor> layers, std::vector<Tensor> head,
                                            std::optional<Tensor> gates, int64_t rows, int64_t columns,
                                            int64_t num_states, int64_t mixtures, Tensor seed, int64_t num_samples,
                                            int64_t first_index, double temperature, std::optional<Tensor> given,
                                            std::optional<Tensor> dims) {
  const Model model(layers, head, rows, columns, num_states, mixtures);
  const PixelCnnModel& m = model.view;
  GridCall call(m.head, rows * columns, seed, num_samples, first_index, temperature, given, dims, head[0]);
  const int64_t n = num_samples;
  Parameters context;
  PixelCnnSample q{};
  q.model = m;
  q.sample = call.sample;
  q.gates = gates.has_value() ? context.keep(*gates, "gates", {n, m.L, 4 * m.F}) : nullptr;
  if (n == 0) return call.results();

  Crew crew;
  const WorkSpace packed(PYAR_FOR_THIS_CPU(pixel_cnn_packed_size)(m));
  q.packed = packed.data();
  const auto pack = PYAR_FOR_THIS_CPU(pixel_cnn_pack);
  crew.share(m.L + 1, [&](int64_t layer, int64_t) { pack(m, layer, packed.data()); });

  const auto begin = PYAR_FOR_THIS_CPU(pixel_cnn_begin);
  const auto row_of = PYAR_FOR_THIS_CPU(pixel_cnn_row);
  const auto pixels_of = PYAR_FOR_THIS_CPU(pixel_cnn_pixels);
  const auto end = PYAR_FOR_THIS_CPU(pixel_cnn_end);
  const auto space_of = PYAR_FOR_THIS_CPU(pixel_cnn_space);
  const int64_t sums_size = PYAR_FOR_THIS_CPU(pixel_cnn_sums)(m), threads = crew.size();
  std::atomic<bool> good{true};
  if (n < threads) {
    // Too few samples for the threads: they share the columns of the rows.
    const WorkSpace space(space_of(m, n, q.gates != nullptr)), sums(threads * sums_size);
    const PixelCnnTile tile = {0, n, space.data()};
    const int64_t parts = std::min(threads, (columns + 5) / 6);
    begin(q, tile);
    for (int64_t row = 0; row < rows && good; ++row) {
      for (int64_t layer = 0; layer < m.L; ++layer)
        crew.share(parts, [&](int64_t part, int64_t seat) {
          row_of(q, tile, row, layer, columns * part / parts, columns * (part + 1) / parts,
                 sums.data() + seat * sums_size);
        });
      if (!pixels_of(q, tile, row)) good = false;
    }
    end(q, tile);
  } else {
    const int64_t rounds = (n + threads * kTileSamples - 1) / (threads * kTileSamples), tiles = rounds * threads;
    crew.share(tiles, [&](int64_t index, int64_t) {
      const int64_t first = n * index / tiles, count = n * (index + 1) / tiles - first;
      const WorkSpace space(space_of(m, count, q.gates != nullptr)), sums(sums_size);
      const PixelCnnTile tile = {first, count, space.data()};
      begin(q, tile);
      for (int64_t row = 0; row < rows && good; ++row) {
        for (int64_t layer = 0; layer < m.L; ++layer) row_of(q, tile, row, layer, 0, columns, sums.data());
        if (!pixels_of(q, tile, row)) good = false;
      }
      end(q, tile);
    });
  }
  check_drawn(good);
  return call.results();
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) { m.impl("pixel_cnn_sample", TORCH_BOX(&pixel_cnn_sample)); }

}  // namespace
}  // namespace pyar::cpu
