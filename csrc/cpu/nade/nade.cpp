// The CPU kernels of the NADE operations: checks, memory, threads. The loops are in *_kernel.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/large_pages.h"
#include "cpu/nade/kernel.h"
#include "cpu/team.h"

namespace pyar::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::vector<int64_t> shape_of(const Tensor& t) {
  std::vector<int64_t> shape(t.dim());
  for (int64_t i = 0; i < t.dim(); ++i) shape[i] = t.size(i);
  return shape;
}

// The tensor, contiguous, after checking its device, dtype and shape.
Tensor checked(const Tensor& t, const char* name, ScalarType type, const char* type_name,
               const std::vector<int64_t>& shape) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be a CPU tensor");
  STD_TORCH_CHECK(t.scalar_type() == type, name, " must be ", type_name);
  STD_TORCH_CHECK(shape_of(t) == shape, name, " must be ", shape_text(shape), ", got ", shape_text(shape_of(t)));
  return torch::stable::contiguous(t);
}

Tensor checked_float(const Tensor& t, const char* name, const std::vector<int64_t>& shape) {
  return checked(t, name, ScalarType::Float, "float32", shape);
}

// The parameters as the kernels see them; keeps contiguous copies alive.
struct Model {
  std::vector<Tensor> tensors;
  std::vector<DenseLayer> layers;
  NadeParameters view{};

  Model(const Tensor& W, const Tensor& c, const Tensor& V, const Tensor& b, const std::vector<Tensor>& mlp) {
    STD_TORCH_CHECK(c.dim() == 1 && V.dim() == 3 && (W.dim() == 2 || W.dim() == 3), "c must be [H], V [D, P, F] and W ",
                    "[D, K-1, H] or [D, H], got ", shape_text(shape_of(c)), ", ", shape_text(shape_of(V)), " and ",
                    shape_text(shape_of(W)));
    STD_TORCH_CHECK(mlp.size() % 2 == 0, "mlp must hold a weight and a bias for every layer, got ", mlp.size(),
                    " tensors");
    const int64_t D = V.size(0), P = V.size(1), H = c.size(0), K = P == 1 ? 2 : P;
    STD_TORCH_CHECK(D >= 1 && H >= 1 && P >= 1 && K <= 256,
                    "D and H must be at least 1, and the number of states between 2 and 256, got D=", D, ", H=", H,
                    ", K=", K);
    view.scalar_input = W.dim() == 2;
    int64_t features = H;
    for (size_t l = 0; 2 * l < mlp.size(); ++l) {
      STD_TORCH_CHECK(mlp[2 * l].dim() == 2 && mlp[2 * l].size(0) >= 1, "mlp weights must be [M, inputs], got ",
                      shape_text(shape_of(mlp[2 * l])));
      const int64_t outputs = mlp[2 * l].size(0);
      const float* weight = keep(checked_float(mlp[2 * l], "mlp weight", {outputs, features}));
      const float* bias = keep(checked_float(mlp[2 * l + 1], "mlp bias", {outputs}));
      layers.push_back({weight, bias, features, outputs});
      features = outputs;
    }
    const std::vector<int64_t> input =
        view.scalar_input ? std::vector<int64_t>{D, H} : std::vector<int64_t>{D, K - 1, H};
    view.W = keep(checked_float(W, "W", input));
    view.c = keep(checked_float(c, "c", {H}));
    view.V = keep(checked_float(V, "V", {D, P, features}));
    view.b = keep(checked_float(b, "b", {D, P}));
    view.D = D;
    view.H = H;
    view.K = K;
    view.P = P;
    view.F = features;
    view.num_layers = static_cast<int64_t>(layers.size());
    view.layers = layers.data();
  }
  Model(const Model&) = delete;

  const float* keep(Tensor t) {
    tensors.push_back(std::move(t));
    return static_cast<const float*>(tensors.back().const_data_ptr());
  }
};

const uint8_t* bytes(const Tensor& t) { return static_cast<const uint8_t*>(t.const_data_ptr()); }
float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// States uint8 [B, columns] below K, contiguous.
Tensor checked_states(const Tensor& x, const char* name, int64_t B, int64_t columns, int64_t K) {
  Tensor states = checked(x, name, ScalarType::Byte, "uint8", {B, columns});
  const uint8_t* p = bytes(states);
  uint8_t highest = 0;
  for (int64_t i = 0; i < B * columns; ++i) highest = p[i] > highest ? p[i] : highest;
  STD_TORCH_CHECK(highest < K, name, " must hold states 0 ... ", K - 1, ", got ", static_cast<int>(highest));
  return states;
}

int64_t batch_size(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, "x must be [B, D], got ", shape_text(shape_of(x)));
  return x.size(0);
}

// Uninitialised float32 of that shape.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& shape) {
  constexpr int64_t kFresh = int64_t{1} << 25;  // bytes; less than this the C library keeps, and hands out again
  Tensor t = torch::stable::new_empty(like, shape);
  const int64_t bytes = t.numel() * static_cast<int64_t>(sizeof(float));
  if (bytes >= kFresh) prefer_large_pages(t.mutable_data_ptr(), bytes);
  return t;
}

// Work space of one thread, aligned to cache lines.
struct Scratch {
  float* data;
  explicit Scratch(int64_t count) {
    data = static_cast<float*>(std::aligned_alloc(64, padded(count) * sizeof(float)));
    if (data == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
};

// Calls f(begin, end, seat) on ranges of [0, count), `most` items each at most and nearly equal, where the crew is
// worth it: to hand a piece to another thread costs about as much as some 10⁵ multiply-adds.
//   work  multiply-adds an item
template <class F>
void in_parallel(Crew& crew, int64_t count, int64_t work, int64_t most, const F& f) {
  constexpr int64_t kWorthAPiece = 1 << 18;
  const int64_t pieces = std::min((count + most - 1) / most, count * (work + 1) / kWorthAPiece);
  if (count == 0) return;
  if (pieces < 2) return f(int64_t{0}, count, int64_t{0});
  crew.share(pieces,
             [&](int64_t piece, int64_t seat) { f(count * piece / pieces, count * (piece + 1) / pieces, seat); });
}

// Samples a piece, so that every thread has some pieces, and a piece enough samples that the weights are read seldom.
int64_t samples_a_piece(int64_t samples, int64_t threads) {
  constexpr int64_t kPiecesAThread = 2, kFewest = 16;
  return std::clamp((samples + kPiecesAThread * threads - 1) / (kPiecesAThread * threads), kFewest, kTile);
}

// Output weights a dimension from which on it pays that threads share a lone sample's.
constexpr int64_t kWorthATeam = 1 << 15;

// Work space that calls hand on to each other: fresh memory costs a visit to the system for every page, in a training
// loop as much as the gradients themselves. At most kMostKept spaces of kKeptFloats stay between calls; calls at the
// same time have their own.
class SharedScratch {
 public:
  explicit SharedScratch(int64_t count) {
    for (Slot& slot : kept()) {  // the smallest that is large enough
      std::unique_ptr<Space> space(slot.exchange(nullptr));
      if (space != nullptr && space->count >= count && (space_ == nullptr || space->count < space_->count))
        std::swap(space, space_);
      if (space != nullptr) space.reset(slot.exchange(space.release()));
    }
    if (space_ == nullptr) space_ = std::make_unique<Space>(count);
  }
  ~SharedScratch() {
    if (space_->count > kKeptFloats) return;
    for (Slot& slot : kept()) {  // the largest are kept
      std::unique_ptr<Space> space(slot.exchange(nullptr));
      if (space_ != nullptr && (space == nullptr || space->count < space_->count)) std::swap(space, space_);
      if (space != nullptr) space.reset(slot.exchange(space.release()));
    }
  }
  SharedScratch(const SharedScratch&) = delete;

  float* data() const { return space_->scratch.data; }

 private:
  static constexpr int64_t kKeptFloats = int64_t{1} << 24;
  static constexpr int64_t kMostKept = 2;  // as many as a call has
  struct Space {
    int64_t count;
    Scratch scratch;
    explicit Space(int64_t count) : count(count), scratch(count) {
      prefer_large_pages(scratch.data, count * static_cast<int64_t>(sizeof(float)));
    }
  };
  // What no call has at the moment. No lock, which a process could be forked with.
  using Slot = std::atomic<Space*>;
  static std::array<Slot, kMostKept>& kept() {
    static std::array<Slot, kMostKept> slots{};
    return slots;
  }

  std::unique_ptr<Space> space_;
};

// What many samples share where there are two states, made for the life of this object.
class Table {
 public:
  static constexpr int64_t kRowsAPiece = 32;
  static constexpr int64_t kAlways = 8;  // samples that pay for one; gradients, which read more rows, have one anyway

  // Makes one if there is none yet and `samples` pay for it, which are few: a row of factors costs as much as three
  // changes.
  Table(Crew& crew, Model& model, int64_t samples) : model_(model) {
    NadeParameters& m = model.view;
    if (m.K != 2 || samples < kAlways || m.factors != nullptr) return;
    const int64_t of_factors = (m.D + 1) * row_stride(m.H), of_rows = m.num_layers == 0 ? m.D * row_stride(m.F) : 0;
    space_.emplace(of_factors + padded(m.D + 1) + of_rows);
    NadeTable table{space_->data(), space_->data() + of_factors, nullptr};
    if (of_rows > 0) table.rows = table.largest + padded(m.D + 1);
    std::memset(table.factors + m.D * row_stride(m.H), 0, row_stride(m.H) * sizeof(float));
    table.largest[m.D] = 0.0f;
    in_parallel(crew, m.D, 16 * m.H, kRowsAPiece,
                [&](int64_t begin, int64_t end, int64_t) { PYAR_FOR_THIS_CPU(nade_table)(m, table, begin, end); });
    m.factors = table.factors;
    m.largest = table.largest;
    m.rows = table.rows;
  }
  ~Table() {
    if (space_.has_value()) model_.view.factors = model_.view.largest = model_.view.rows = nullptr;
  }
  Table(const Table&) = delete;

 private:
  Model& model_;
  std::optional<SharedScratch> space_;
};

void forward(Model& model, const Tensor& x, int64_t B, float* log_prob, float* conditional, float* logits) {
  Crew crew;
  const Table table(crew, model, B);
  const NadeForward f{model.view, bytes(x), log_prob, conditional, logits};
  const auto run = PYAR_FOR_THIS_CPU(nade_forward);
  const int64_t size = PYAR_FOR_THIS_CPU(nade_forward_scratch)(model.view);
  const SharedScratch scratch(crew.size() * padded(size));
  in_parallel(
      crew, B, model.view.D * model.view.P * model.view.H, samples_a_piece(B, crew.size()),
      [&](int64_t begin, int64_t end, int64_t seat) { run(f, begin, end, scratch.data() + seat * padded(size)); });
}

Tensor nade_log_prob(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  Tensor out = allocate(b, {B});
  forward(model, states, B, floats(out), nullptr, nullptr);
  return out;
}

Tensor nade_conditional_log_prob(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  Tensor out = allocate(b, {B, model.view.D});
  forward(model, states, B, nullptr, floats(out), nullptr);
  return out;
}

Tensor nade_logits(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  Tensor out = allocate(b, {B, model.view.D, model.view.P});
  forward(model, states, B, nullptr, nullptr, floats(out));
  return out;
}

// Gradients with respect to W, c, V, b and the layers.
struct Gradients {
  Tensor W, c, V, b;
  std::vector<Tensor> mlp;

  // Of each group on its own, if there are groups: then with a first dimension of that size.
  Gradients(const Model& model, const Tensor& like, std::vector<int64_t> groups = {})
      : W(allocate(like, shape(groups, model.view.scalar_input
                                           ? std::vector<int64_t>{model.view.D, model.view.H}
                                           : std::vector<int64_t>{model.view.D, model.view.K - 1, model.view.H}))),
        c(allocate(like, shape(groups, {model.view.H}))),
        V(allocate(like, shape(groups, {model.view.D, model.view.P, model.view.F}))),
        b(allocate(like, shape(groups, {model.view.D, model.view.P}))) {
    for (const DenseLayer& layer : model.layers) {
      mlp.push_back(allocate(like, shape(groups, {layer.outputs, layer.inputs})));
      mlp.push_back(allocate(like, shape(groups, {layer.outputs})));
    }
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> tuple() const { return {W, c, V, b, mlp}; }

 private:
  static std::vector<int64_t> shape(std::vector<int64_t> groups, const std::vector<int64_t>& own) {
    groups.insert(groups.end(), own.begin(), own.end());
    return groups;
  }
};

// What is differentiated: the sum over the examples of the log-probabilities times log_prob [B], or of the conditionals
// times conditional [B, D], or of the logits times logits [B, D, P]; all null: the log-probabilities' times constant.
struct Upstream {
  const float* log_prob = nullptr;
  const float* conditional = nullptr;
  const float* logits = nullptr;
  float constant = 0.0f;
};

// How finely the phases of a gradient are cut: into pieces of some ten microseconds.
constexpr int64_t kUnitsAPiece = 1, kDimensionsAPiece = 4, kRowsAPiece = 20;

// The gradients of group `group` of `out`, from x [B, D]. log_prob [B] is added to, or null.
void backward(Crew& crew, Model& model, const uint8_t* x, int64_t B, const Upstream& upstream, double* log_prob,
              const Gradients& out, int64_t group = 0) {
  const Table table(crew, model, Table::kAlways);
  const NadeParameters& m = model.view;
  const int64_t input_size = m.D * m.H * (m.scalar_input ? 1 : m.K - 1);
  const auto part_of = [group](const Tensor& t, int64_t size) { return floats(t) + group * size; };
  std::vector<float*> grad_layers;
  for (size_t l = 0; l < model.layers.size(); ++l) {
    grad_layers.push_back(part_of(out.mlp[2 * l], model.layers[l].outputs * model.layers[l].inputs));
    grad_layers.push_back(part_of(out.mlp[2 * l + 1], model.layers[l].outputs));
  }
  NadeBackward q{};
  q.grad_W = part_of(out.W, input_size);
  q.grad_c = part_of(out.c, m.H);
  q.grad_V = part_of(out.V, m.D * m.P * m.F);
  q.grad_b = part_of(out.b, m.D * m.P);
  q.grad_layers = grad_layers.data();
  if (B == 0) {
    std::memset(q.grad_W, 0, input_size * sizeof(float));
    std::memset(q.grad_c, 0, m.H * sizeof(float));
    std::memset(q.grad_V, 0, m.D * m.P * m.F * sizeof(float));
    std::memset(q.grad_b, 0, m.D * m.P * sizeof(float));
    for (size_t l = 0; l < model.layers.size(); ++l) {
      const DenseLayer& layer = model.layers[l];
      std::memset(grad_layers[2 * l], 0, layer.outputs * layer.inputs * sizeof(float));
      std::memset(grad_layers[2 * l + 1], 0, layer.outputs * sizeof(float));
    }
    return;
  }

  const int64_t parts = (B + kSubBatch - 1) / kSubBatch;
  const int64_t most = (B + parts - 1) / parts;  // samples of the largest sub-batch
  const int64_t H = row_stride(m.H);
  const bool in_units = m.rows != nullptr;
  // Blocks of √D dimensions: as many checkpoints of the activation as rows to replay between two of them. Fewer where
  // nothing else is done once a block, so that its rows are found in the cache again: half of it for units, in whole
  // strips, and two fifths for many states.
  const double root = std::sqrt(static_cast<double>(m.D));
  const int64_t block = in_units            ? (static_cast<int64_t>(std::ceil(root / 2)) + 3) / 4 * 4
                        : m.num_layers == 0 ? static_cast<int64_t>(std::ceil(0.4 * root))
                                            : static_cast<int64_t>(std::ceil(root));
  const int64_t blocks = (m.D + block - 1) / block;
  q.model = m;
  q.block = block;
  q.n = most;
  q.units = std::clamp<int64_t>(most / kFewestInUnit, 1, kUnits);
  q.grad_constant = upstream.constant;

  std::vector<int64_t> sizes = {blocks * most * H, blocks * most, most * H};
  int64_t seat_floats;
  if (in_units) {
    sizes.push_back(2 * q.units * block * 2 * H);
    sizes.push_back(2 * q.units * padded(block));
    seat_floats = padded(PYAR_FOR_THIS_CPU(nade_unit_scratch)(q));
  } else {
    for (const int64_t size : {most * block * H, most * block * H, block * m.P * kSubBatch, most * block})
      sizes.push_back(size);
    for (const DenseLayer& layer : model.layers)
      for (int twice = 0; twice < 2; ++twice) sizes.push_back(most * block * row_stride(layer.outputs));
    seat_floats =
        padded(std::max(PYAR_FOR_THIS_CPU(nade_backward_scratch)(q), PYAR_FOR_THIS_CPU(nade_layer_scratch)(q)));
  }
  int64_t total = crew.size() * seat_floats;
  for (const int64_t size : sizes) total += padded(size);
  const SharedScratch space(total);
  float* const seats = space.data() + total - crew.size() * seat_floats;  // each seat's own
  std::vector<float*> parts_of_space;
  for (int64_t i = 0, at = 0; i < static_cast<int64_t>(sizes.size()); at += padded(sizes[i]), ++i)
    parts_of_space.push_back(space.data() + at);

  std::vector<float*> features, feature_gradients;
  q.checkpoints = parts_of_space[0];
  q.bounds = parts_of_space[1];
  q.later = parts_of_space[2];
  if (in_units) {
    q.partial = parts_of_space[3];
    q.partial_b = parts_of_space[4];
  } else {
    q.hidden = parts_of_space[3];
    q.suffix = parts_of_space[4];
    q.logit_gradients = parts_of_space[5];
    q.run = reinterpret_cast<int32_t*>(parts_of_space[6]);
    for (size_t l = 0; l < model.layers.size(); ++l) {
      features.push_back(parts_of_space[7 + 2 * l]);
      feature_gradients.push_back(parts_of_space[8 + 2 * l]);
    }
    q.features = features.data();
    q.feature_gradients = feature_gradients.data();
  }

  int64_t turn = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = B * part / parts;
    q.n = B * (part + 1) / parts - first;
    q.first = part == 0;
    q.x = x + first * m.D;
    q.grad_log_prob = upstream.log_prob == nullptr ? nullptr : upstream.log_prob + first;
    q.grad_conditional = upstream.conditional == nullptr ? nullptr : upstream.conditional + first * m.D;
    q.grad_logits = upstream.logits == nullptr ? nullptr : upstream.logits + first * m.D * m.P;
    q.log_prob = log_prob == nullptr ? nullptr : log_prob + first;
    in_parallel(crew, q.n, m.D * m.H, kUnit,
                [&](int64_t begin, int64_t end, int64_t) { PYAR_FOR_THIS_CPU(nade_checkpoints)(q, begin, end); });
    for (int64_t d0 = (blocks - 1) * block; d0 >= 0; d0 -= block) {
      const int64_t dims = d0 + block < m.D ? block : m.D - d0;
      if (in_units) {
        in_parallel(crew, q.units, 8 * q.n * dims * m.H / q.units, 1, [&](int64_t begin, int64_t end, int64_t seat) {
          for (int64_t unit = begin; unit < end; ++unit)
            PYAR_FOR_THIS_CPU(nade_unit_backward)(q, d0, turn, unit, seats + seat * seat_floats);
        });
        if (q.units > 1)
          in_parallel(crew, dims, q.units * m.H, kDimensionsAPiece, [&](int64_t begin, int64_t end, int64_t) {
            PYAR_FOR_THIS_CPU(nade_unit_sums)(q, d0, turn, begin, end);
          });
        continue;
      }
      // A thread alone takes all units at once: a piece packs its output rows anew.
      in_parallel(crew, kUnits, 2 * q.n * dims * m.P * m.H / kUnits, crew.size() == 1 ? kUnits : kUnitsAPiece,
                  [&](int64_t begin, int64_t end, int64_t seat) {
                    PYAR_FOR_THIS_CPU(nade_backward_samples)(q, d0, begin, end, seats + seat * seat_floats);
                  });
      in_parallel(crew, dims, q.n * m.P * m.H, kDimensionsAPiece, [&](int64_t begin, int64_t end, int64_t) {
        PYAR_FOR_THIS_CPU(nade_backward_dimensions)(q, d0, begin, end);
      });
      for (int64_t l = 0; l < m.num_layers; ++l) {
        in_parallel(crew, m.layers[l].outputs, q.n * dims * m.layers[l].inputs, kRowsAPiece,
                    [&](int64_t begin, int64_t end, int64_t seat) {
                      PYAR_FOR_THIS_CPU(nade_backward_layer)(q, d0, l, begin, end, seats + seat * seat_floats);
                    });
      }
    }
    PYAR_FOR_THIS_CPU(nade_backward_end)(q);
  }
}

using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

// The gradient of the log-probabilities, shape [...], or of the conditionals, [..., D].
Upstream checked_upstream(const Tensor& grad, std::vector<int64_t> shape, int64_t D, std::optional<Tensor>* keep) {
  const bool conditional = grad.dim() == static_cast<int64_t>(shape.size()) + 1;
  if (conditional) shape.push_back(D);
  *keep = checked_float(grad, "grad", shape);
  const auto* values = static_cast<const float*>((*keep)->const_data_ptr());
  Upstream upstream;
  (conditional ? upstream.conditional : upstream.log_prob) = values;
  return upstream;
}

GradientTuple nade_log_prob_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor V, Tensor b,
                                     std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  std::optional<Tensor> contiguous;
  const Upstream upstream = checked_upstream(grad, {B}, model.view.D, &contiguous);
  const Gradients out(model, b);
  Crew crew;
  backward(crew, model, bytes(states), B, upstream, nullptr, out);
  return out.tuple();
}

GradientTuple nade_log_prob_backward_each(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor V, Tensor b,
                                          std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const NadeParameters& m = model.view;
  STD_TORCH_CHECK(x.dim() == 3, "x must be [G, n, D], got ", shape_text(shape_of(x)));
  const int64_t groups = x.size(0), n = x.size(1);
  const Tensor states = checked_states(torch::stable::view(torch::stable::contiguous(x), {groups * n, x.size(2)}), "x",
                                       groups * n, m.D, m.K);
  std::optional<Tensor> contiguous;
  const Upstream upstream = checked_upstream(grad, {groups, n}, m.D, &contiguous);
  const Gradients out(model, b, {groups});
  Crew crew;
  const Table table(crew, model, Table::kAlways);  // here, for all groups
  const auto run = [&](Crew& own_crew, int64_t begin, int64_t end) {
    std::vector<uint8_t> rows;
    std::vector<float> gradients;
    for (int64_t group = begin; group < end; ++group) {
      rows.clear();
      gradients.clear();
      const bool conditional = upstream.conditional != nullptr;
      const int64_t each = conditional ? m.D : 1;
      const float* given = (conditional ? upstream.conditional : upstream.log_prob) + group * n * each;
      for (int64_t i = 0; i < n; ++i) {
        const float* own = given + i * each;
        if (std::all_of(own, own + each, [](float g) { return g == 0.0f; })) continue;
        const uint8_t* row = bytes(states) + (group * n + i) * m.D;
        rows.insert(rows.end(), row, row + m.D);
        gradients.insert(gradients.end(), own, own + each);
      }
      Upstream active;
      (conditional ? active.conditional : active.log_prob) = gradients.data();
      backward(own_crew, model, rows.data(), static_cast<int64_t>(rows.size()) / m.D, active, nullptr, out, group);
    }
  };
  // Whole groups to the threads, or, where they are few, each to all threads.
  if (groups >= crew.size()) {
    in_parallel(crew, groups, n * m.D * m.P * m.H, 1, [&](int64_t begin, int64_t end, int64_t) {
      Crew alone(1);
      run(alone, begin, end);
    });
  } else {
    run(crew, 0, groups);
  }
  return out.tuple();
}

GradientTuple nade_logits_backward(Tensor grad, Tensor x, Tensor W, Tensor c, Tensor V, Tensor b,
                                   std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  const Tensor given = checked_float(grad, "grad", {B, model.view.D, model.view.P});
  Upstream upstream;
  upstream.logits = static_cast<const float*>(given.const_data_ptr());
  const Gradients out(model, b);
  Crew crew;
  backward(crew, model, bytes(states), B, upstream, nullptr, out);
  return out.tuple();
}

// −1/B Σ_b terms_b; NaN for none.
float mean_nll(const std::vector<double>& terms) {
  if (terms.empty()) return std::numeric_limits<float>::quiet_NaN();
  double sum = 0.0;
  for (const double term : terms) sum += term;
  return static_cast<float>(-sum / static_cast<double>(terms.size()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> nade_mean_nll(Tensor x, Tensor W, Tensor c, Tensor V, Tensor b) {
  Model model(W, c, V, b, {});
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  std::vector<double> log_prob(B, 0.0);
  Upstream upstream;
  upstream.constant = B == 0 ? 0.0f : -1.0f / static_cast<float>(B);
  const Gradients out(model, b);
  Crew crew;
  backward(crew, model, bytes(states), B, upstream, log_prob.data(), out);
  Tensor loss = allocate(b, {});
  *floats(loss) = mean_nll(log_prob);
  return {loss, out.W, out.c, out.V, out.b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> nade_weighted_mean_nll(
    Tensor x, Tensor weights, Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp) {
  Model model(W, c, V, b, mlp);
  const int64_t B = batch_size(x);
  const Tensor states = checked_states(x, "x", B, model.view.D, model.view.K);
  const Tensor given = checked_float(weights, "weights", {B});
  const auto* weight = static_cast<const float*>(given.const_data_ptr());
  std::vector<float> gradient(B);
  for (int64_t i = 0; i < B; ++i) gradient[i] = -weight[i] / static_cast<float>(B);
  std::vector<double> log_prob(B, 0.0);
  Upstream upstream;
  upstream.log_prob = gradient.data();
  const Gradients out(model, b);
  Crew crew;
  backward(crew, model, bytes(states), B, upstream, log_prob.data(), out);
  Tensor loss = allocate(b, {}), each = allocate(b, {B});
  for (int64_t i = 0; i < B; ++i) {
    floats(each)[i] = static_cast<float>(log_prob[i]);
    log_prob[i] = static_cast<double>(weight[i]) * floats(each)[i];
  }
  *floats(loss) = mean_nll(log_prob);
  return {loss, each, out.W, out.c, out.V, out.b, out.mlp};
}

std::tuple<Tensor, Tensor> nade_sample(Tensor W, Tensor c, Tensor V, Tensor b, std::vector<Tensor> mlp, Tensor seed,
                                       int64_t num_samples, int64_t first_index, double temperature,
                                       std::optional<Tensor> given) {
  Model model(W, c, V, b, mlp);
  STD_TORCH_CHECK(num_samples >= 0, "num_samples must not be negative, got ", num_samples);
  STD_TORCH_CHECK(first_index >= 0, "first_index must not be negative, got ", first_index);
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature), "temperature must be positive and finite, got ",
                  temperature);
  const Tensor number = checked(seed, "seed", ScalarType::Long, "int64", {});
  std::optional<Tensor> forced;
  if (given.has_value()) {
    STD_TORCH_CHECK(given->dim() == 2 && given->size(1) <= model.view.D,
                    "given must be [num_samples, G] with G at most ", model.view.D, ", got ",
                    shape_text(shape_of(*given)));
    forced = checked_states(*given, "given", num_samples, given->size(1), model.view.K);
  }
  Tensor x = torch::stable::empty({num_samples, model.view.D}, ScalarType::Byte, std::nullopt, b.device());
  Tensor log_prob = allocate(b, {num_samples});
  Crew crew;
  const Table table(crew, model, num_samples);
  NadeSample q{};
  q.model = model.view;
  q.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(number.const_data_ptr()));
  q.first_index = static_cast<uint64_t>(first_index);
  q.temperature = static_cast<float>(temperature);
  q.given = forced.has_value() ? bytes(*forced) : nullptr;
  q.num_given = forced.has_value() ? forced->size(1) : 0;
  q.x = static_cast<uint8_t*>(x.mutable_data_ptr());
  q.log_prob = floats(log_prob);
  const auto run = PYAR_FOR_THIS_CPU(nade_sample);
  const int64_t size = PYAR_FOR_THIS_CPU(nade_sample_scratch)(model.view);
  std::atomic<bool> good{true};
  const int64_t threads = crew.size();
  if (num_samples > 0 && 2 * num_samples <= threads && model.view.P * model.view.F >= kWorthATeam) {
    const Scratch logits(2 * model.view.P * kMostAhead);
    const Scratch scratch(threads * padded(size));  // now: a member that failed to allocate would leave others waiting
    for (int64_t index = 0; index < num_samples; ++index) {
      run_team(crew, threads, 4 * model.view.P * model.view.F, [&](Team* team, int rank) {
        if (!PYAR_FOR_THIS_CPU(nade_sample_alone)(q, index, logits.data, scratch.data + rank * padded(size), team,
                                                  rank))
          good = false;
      });
    }
  } else {
    const SharedScratch scratch(crew.size() * padded(size));
    in_parallel(crew, num_samples, model.view.D * model.view.P * model.view.H, samples_a_piece(num_samples, threads),
                [&](int64_t begin, int64_t end, int64_t seat) {
                  if (!run(q, begin, end, scratch.data() + seat * padded(size))) good = false;
                });
  }
  STD_TORCH_CHECK(good, "a conditional of the model is no distribution: its logits are NaN or infinite");
  return {x, log_prob};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("nade_log_prob", TORCH_BOX(&nade_log_prob));
  m.impl("nade_log_prob_backward", TORCH_BOX(&nade_log_prob_backward));
  m.impl("nade_log_prob_backward_each", TORCH_BOX(&nade_log_prob_backward_each));
  m.impl("nade_conditional_log_prob", TORCH_BOX(&nade_conditional_log_prob));
  m.impl("nade_weighted_mean_nll", TORCH_BOX(&nade_weighted_mean_nll));
  m.impl("nade_logits", TORCH_BOX(&nade_logits));
  m.impl("nade_logits_backward", TORCH_BOX(&nade_logits_backward));
  m.impl("nade_mean_nll", TORCH_BOX(&nade_mean_nll));
  m.impl("nade_sample", TORCH_BOX(&nade_sample));
}

}  // namespace
}  // namespace pyar::cpu
