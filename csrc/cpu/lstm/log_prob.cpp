// PixelLSTM's teacher-forced log-probability and its gradients on the CPU: checks, memory, threads, the order in which
// segments, groups and slices run. The loops are in gradient_kernel.cpp.
#include <cstring>
#include <tuple>

#include "cpu/lstm/host.h"

namespace pyar::cpu {

namespace {

// Rows, samples times steps, whose gradients go into the parameters' at once.
constexpr int64_t kGroupRows = 1024;

// The sizes that forward, backward and pyar/ops/lstm.py (for shape inference) agree on.
struct Plan {
  int64_t batch, num_dims, layers, hidden;
  int64_t group;    // steps
  int64_t segment;  // steps, whole groups; num_dims where every step is kept
  int64_t slot;     // floats of h or c of all samples
  int64_t gates;    // floats of the gates of all samples

  Plan(int64_t batch, int64_t num_dims, int64_t layers, int64_t hidden, int64_t checkpoint_steps)
      : batch(batch), num_dims(num_dims), layers(layers), hidden(hidden) {
    group = std::max<int64_t>(1, kGroupRows / std::max<int64_t>(batch, 1));
    segment = checkpoint_steps > 0 ? std::min((checkpoint_steps + group - 1) / group * group, num_dims) : num_dims;
    slot = batch * row_stride(hidden);
    gates = batch * 4 * padded_units(hidden);
  }
  int64_t segments() const { return (num_dims + segment - 1) / segment; }
  // Floats of one layer's h, c and gates of `steps` steps.
  int64_t layer_floats(int64_t steps) const { return 2 * (steps + 1) * slot + steps * gates; }
  int64_t kept_floats(int64_t checkpoint_steps) const {
    return checkpoint_steps > 0 ? segments() * layers * 2 * slot : layers * layer_floats(num_dims);
  }
};

// Where the layers' h, c and gates of a segment of `steps` steps lie in one block of memory.
struct Segment {
  float* h[kMaxLayers];
  float* c[kMaxLayers];
  float* gates[kMaxLayers];

  Segment(const Plan& plan, int64_t steps, float* memory) {
    for (int64_t layer = 0; layer < plan.layers; ++layer, memory += plan.layer_floats(steps)) {
      h[layer] = memory;
      c[layer] = memory + (steps + 1) * plan.slot;
      gates[layer] = memory + 2 * (steps + 1) * plan.slot;
    }
  }
};

// Runs work(slice's first sample, its samples, scratch) for all slices of the batch, in parallel.
class Slices {
 public:
  Slices(Crew& crew, const PackedLstm& lstm, int64_t batch)
      : crew_(crew), batch_(batch), samples_(slice_samples(batch, crew.size())) {
    for (int64_t first = 0; first < batch; first += samples_)
      scratch_.emplace_back(lstm, std::min(samples_, batch - first));
  }

  template <class Work>
  void run(const Work& work) const {
    crew_.share(static_cast<int64_t>(scratch_.size()), [&](int64_t index, int64_t) {
      work(index * samples_, std::min(samples_, batch_ - index * samples_), scratch_[index].scratch());
    });
  }

 private:
  Crew& crew_;
  int64_t batch_, samples_;
  std::vector<Scratch> scratch_;
};

void check_inputs(const Tensor& x, int64_t states, int64_t checkpoint_steps) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Byte && x.is_cpu() && x.dim() == 2 && x.is_contiguous(),
                  "x must be uint8 [B, D], contiguous and on the CPU");
  STD_TORCH_CHECK(checkpoint_steps >= 0, "checkpoint_steps must not be negative, got ", checkpoint_steps);
  const auto* begin = static_cast<const uint8_t*>(x.const_data_ptr());
  const uint8_t* worst = std::max_element(begin, begin + x.numel());
  STD_TORCH_CHECK(x.numel() == 0 || *worst < states, "x must hold states 0 … ", states - 1, ", got ",
                  static_cast<int>(*worst));
}

float* mutable_floats(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// log p(x) [B], or, with `conditionals`, log p(x_d | x_<d) [B, D]; and what the gradients need.
std::tuple<Tensor, Tensor> forward(const Tensor& states, const std::vector<Tensor>& weights, const Tensor& head_weight,
                                   const Tensor& head_bias, int64_t checkpoint_steps, bool keep, bool conditionals) {
  const LstmTensors parameters(weights, head_weight, head_bias);
  Crew crew;
  // Training changes the parameters with every call: there is nothing to find.
  const std::shared_ptr<const PackedLstm> packed =
      keep ? std::make_shared<const PackedLstm>(crew, parameters, false) : cached_lstm(crew, parameters, false);
  const PackedLstm& lstm = *packed;
  const Tensor x = torch::stable::contiguous(states);
  check_inputs(x, lstm.model.states, checkpoint_steps);
  const Plan plan(x.size(0), x.size(1), lstm.model.layers, lstm.model.hidden, checkpoint_steps);
  Tensor log_prob = conditionals ? torch::stable::new_empty(head_weight, {plan.batch, plan.num_dims})
                                 : torch::stable::new_empty(head_weight, {plan.batch});
  Tensor kept = torch::stable::new_empty(head_weight, {keep ? plan.kept_floats(checkpoint_steps) : 0});
  if (plan.batch == 0) return {log_prob, kept};
  prefer_large_pages(kept.mutable_data_ptr(), kept.numel() * 4);

  // Without gradients, or with the states of few steps kept, two slots of h and c take turns.
  const bool keeps_all = keep && checkpoint_steps == 0;
  const Buffer<float> turns(keeps_all ? 0 : plan.layers * plan.layer_floats(1));
  const Segment segment(plan, keeps_all ? plan.num_dims : 1, keeps_all ? mutable_floats(kept) : turns.get());
  LstmForward arguments = {};
  arguments.model = &lstm.model;
  arguments.x = static_cast<const uint8_t*>(x.const_data_ptr());
  arguments.batch = plan.batch;
  arguments.num_dims = arguments.last_step = plan.num_dims;
  arguments.slots = keeps_all ? plan.num_dims + 1 : 2;
  for (int64_t layer = 0; layer < plan.layers; ++layer) {
    arguments.h[layer] = segment.h[layer];
    arguments.c[layer] = segment.c[layer];
    arguments.gates[layer] = keeps_all ? segment.gates[layer] : nullptr;
    std::memset(segment.h[layer], 0, plan.slot * sizeof(float));
    std::memset(segment.c[layer], 0, plan.slot * sizeof(float));
  }
  arguments.checkpoints = keep && !keeps_all ? mutable_floats(kept) : nullptr;
  arguments.checkpoint_steps = plan.segment;
  (conditionals ? arguments.conditional : arguments.log_prob) = mutable_floats(log_prob);
  Slices(crew, lstm, plan.batch).run([&](int64_t first, int64_t count, const LstmScratch& scratch) {
    PYAR_FOR_THIS_CPU(lstm_gradient_kernels).forward(arguments, first, count, scratch);
  });
  return {log_prob, kept};
}

std::tuple<Tensor, Tensor> lstm_log_prob(const Tensor& states, const std::vector<Tensor>& weights,
                                         const Tensor& head_weight, const Tensor& head_bias, int64_t checkpoint_steps,
                                         bool keep) {
  return forward(states, weights, head_weight, head_bias, checkpoint_steps, keep, false);
}

std::tuple<Tensor, Tensor> lstm_conditional_log_prob(const Tensor& states, const std::vector<Tensor>& weights,
                                                     const Tensor& head_weight, const Tensor& head_bias,
                                                     int64_t checkpoint_steps, bool keep) {
  return forward(states, weights, head_weight, head_bias, checkpoint_steps, keep, true);
}

// ---- gradients ----

// The parameters' gradients while they are summed, packed as the kernels add to them.
class PackedGradients {
 public:
  PackedGradients(Crew& crew, const PackedLstm& lstm) : crew_(crew), model_(lstm.model), width_(lstm.kernels.width) {
    const int64_t row = model_.blocks * 4 * width_, matrix = model_.hidden * row;
    for (int layer = 0; layer < model_.layers; ++layer) {
      packed.table[layer] = allocate(layer == 0 ? (model_.states + 1) * row : row, doubles_);
      packed.below[layer] = layer == 0 ? nullptr : allocate(matrix, floats_);
      packed.recurrent[layer] = allocate(matrix, floats_);
    }
    packed.head = allocate(vectors() * model_.hidden * width_, floats_);
    packed.head_bias = allocate(vectors() * width_, doubles_);
  }

  LstmGradients packed{};

  int64_t vectors() const { return (model_.states + width_ - 1) / width_; }

  // weight_ih, weight_hh, bias_ih, bias_hh of a layer as torch.nn.LSTM stores them; like: the parameters.
  void unpack_layer(int layer, const Tensor* like, std::vector<Tensor>* out) const {
    const int64_t hidden = model_.hidden, row = model_.blocks * 4 * width_, inputs = like[0].size(1);
    Tensor weight_ih = torch::stable::new_empty(like[0], {4 * hidden, inputs});
    Tensor weight_hh = torch::stable::new_empty(like[1], {4 * hidden, hidden});
    Tensor bias_ih = torch::stable::new_empty(like[2], {4 * hidden});
    Tensor bias_hh = torch::stable::new_empty(like[3], {4 * hidden});
    unpack_matrix(packed.recurrent[layer], mutable_floats(weight_hh));
    if (layer > 0) unpack_matrix(packed.below[layer], mutable_floats(weight_ih));
    const int64_t states = layer == 0 ? model_.states : 0;
    for (int64_t gate_unit = 0; gate_unit < 4 * hidden; ++gate_unit) {
      const int64_t gate = gate_unit / hidden, unit = gate_unit % hidden;
      const double* sums = packed.table[layer] + (unit / width_ * 4 + gate) * width_ + unit % width_;
      double bias = sums[states * row], scalar = 0.0;
      for (int64_t k = 0; k < states; ++k) {
        bias += sums[k * row];
        scalar += sums[k * row] * (static_cast<double>(k) / static_cast<double>(states - 1));
        if (inputs == states) mutable_floats(weight_ih)[gate_unit * inputs + k] = static_cast<float>(sums[k * row]);
      }
      if (layer == 0 && inputs == 1) mutable_floats(weight_ih)[gate_unit] = static_cast<float>(scalar);
      mutable_floats(bias_ih)[gate_unit] = mutable_floats(bias_hh)[gate_unit] = static_cast<float>(bias);
    }
    out->insert(out->end(), {weight_ih, weight_hh, bias_ih, bias_hh});
  }

  void unpack_head(const Tensor& weight, const Tensor& bias) const {
    for (int64_t k = 0; k < model_.states; ++k) {
      mutable_floats(bias)[k] = static_cast<float>(packed.head_bias[k]);
      for (int64_t unit = 0; unit < model_.hidden; ++unit)
        mutable_floats(weight)[k * model_.hidden + unit] =
            packed.head[(k / width_ * model_.hidden + unit) * width_ + k % width_];
    }
  }

 private:
  template <class T>
  static T* allocate(int64_t count, std::vector<Buffer<T>>& memory) {
    memory.emplace_back(count).zero();
    return memory.back().get();
  }

  // [N][H][4·W] → [4·H, H].
  void unpack_matrix(const float* from, float* to) const {
    const int64_t hidden = model_.hidden, block = 4 * width_;
    constexpr int64_t kRows = 64;
    crew_.share((4 * hidden + kRows - 1) / kRows, [&](int64_t piece, int64_t) {
      for (int64_t gate_unit = piece * kRows; gate_unit < std::min((piece + 1) * kRows, 4 * hidden); ++gate_unit) {
        const int64_t gate = gate_unit / hidden, unit = gate_unit % hidden;
        const float* at = from + unit / width_ * hidden * block + gate * width_ + unit % width_;
        for (int64_t column = 0; column < hidden; ++column) to[gate_unit * hidden + column] = at[column * block];
      }
    });
  }

  Crew& crew_;
  const LstmModel& model_;
  int64_t width_;
  std::vector<Buffer<float>> floats_;
  std::vector<Buffer<double>> doubles_;
};

std::tuple<std::vector<Tensor>, Tensor, Tensor> lstm_log_prob_backward(const Tensor& grad, const Tensor& states,
                                                                       const std::vector<Tensor>& weights,
                                                                       const Tensor& head_weight,
                                                                       const Tensor& head_bias, const Tensor& kept,
                                                                       int64_t checkpoint_steps) {
  Crew crew;
  const PackedLstm lstm(crew, {weights, head_weight, head_bias}, false);
  const LstmGradientKernels& kernels = PYAR_FOR_THIS_CPU(lstm_gradient_kernels);
  const LstmModel& model = lstm.model;
  const Tensor x = torch::stable::contiguous(states);
  check_inputs(x, model.states, checkpoint_steps);
  const Plan plan(x.size(0), x.size(1), model.layers, model.hidden, checkpoint_steps);
  const bool conditionals = grad.dim() == 2;
  if (conditionals)
    check(grad, "grad", {plan.batch, plan.num_dims});
  else
    check(grad, "grad", {plan.batch});
  check(kept, "kept", {plan.kept_floats(checkpoint_steps)});
  const Tensor upstream = torch::stable::contiguous(grad);
  const PackedGradients gradients(crew, lstm);

  std::vector<Buffer<float>> memory;
  const int64_t block = 4 * lstm.kernels.width, panels = (model.blocks + 3) / 4;
  const auto transpose = [&](const Tensor& weight, bool gates) {
    const Tensor from = torch::stable::contiguous(weight);
    const int64_t depth = gates ? model.blocks * block : weight.size(0);
    float* packed = memory.emplace_back(panels * depth * block).get();
    crew.share(panels, [&](int64_t panel, int64_t) {
      kernels.pack_transposed(floats(from), weight.size(0), weight.size(1), gates, packed, panel, panel + 1);
    });
    return packed;
  };

  LstmBackward arguments = {};
  arguments.model = &model;
  arguments.x = static_cast<const uint8_t*>(x.const_data_ptr());
  arguments.grad = floats(upstream);
  arguments.grad_sample = conditionals ? plan.num_dims : 1;
  arguments.grad_step = conditionals ? 1 : 0;
  arguments.batch = plan.batch;
  arguments.num_dims = plan.num_dims;
  arguments.group = plan.group;
  arguments.transposed.head = transpose(head_weight, false);
  for (int layer = 0; layer < model.layers; ++layer) {
    arguments.transposed.below[layer] = layer == 0 ? nullptr : transpose(weights[4 * layer], true);
    arguments.transposed.recurrent[layer] = transpose(weights[4 * layer + 1], true);
    Buffer<float>& dc = memory.emplace_back(plan.slot);
    dc.zero();
    arguments.dc[layer] = dc.get();
    arguments.dgates[layer] = memory.emplace_back((plan.group + 1) * plan.gates).get();
  }
  arguments.dlogits = memory.emplace_back(gradients.vectors() * lstm.kernels.width * plan.group * plan.batch).get();

  const Slices slices(crew, lstm, plan.batch);
  const bool recomputes = checkpoint_steps > 0;
  const Buffer<float> recomputed(recomputes ? plan.layers * plan.layer_floats(plan.segment) : 0);

  for (int64_t index = plan.segments() - 1; index >= 0 && plan.batch > 0; --index) {
    const int64_t begin = index * plan.segment, end = std::min(begin + plan.segment, plan.num_dims);
    const Segment segment(plan, end - begin, recomputes ? recomputed.get() : mutable_floats(kept));
    if (recomputes) {
      LstmForward forward = {};
      forward.model = &model;
      forward.x = arguments.x;
      forward.batch = plan.batch;
      forward.num_dims = plan.num_dims;
      forward.first_step = begin;
      forward.last_step = end;
      forward.slots = end - begin + 1;
      for (int layer = 0; layer < model.layers; ++layer) {
        const float* state = floats(kept) + 2 * (index * model.layers + layer) * plan.slot;
        std::memcpy(segment.h[layer], state, plan.slot * sizeof(float));
        std::memcpy(segment.c[layer], state + plan.slot, plan.slot * sizeof(float));
        forward.h[layer] = segment.h[layer];
        forward.c[layer] = segment.c[layer];
        forward.gates[layer] = segment.gates[layer];
      }
      slices.run([&](int64_t first, int64_t count, const LstmScratch& scratch) {
        kernels.forward(forward, first, count, scratch);
      });
    }
    arguments.segment = begin;
    for (int layer = 0; layer < model.layers; ++layer) {
      arguments.h[layer] = segment.h[layer];
      arguments.c[layer] = segment.c[layer];
      arguments.gates[layer] = segment.gates[layer];
    }
    for (int64_t group = (end - begin + plan.group - 1) / plan.group - 1; group >= 0; --group) {
      const int64_t first_step = begin + group * plan.group, last_step = std::min(first_step + plan.group, end);
      slices.run([&](int64_t first, int64_t count, const LstmScratch& scratch) {
        kernels.backward(arguments, first_step, last_step, first, count, scratch);
      });
      crew.share(model.layers * model.blocks + gradients.vectors(), [&](int64_t item, int64_t) {
        kernels.accumulate(arguments, gradients.packed, first_step, last_step, item);
      });
    }
  }

  std::vector<Tensor> weight_gradients;
  for (int layer = 0; layer < model.layers; ++layer)
    gradients.unpack_layer(layer, &weights[4 * layer], &weight_gradients);
  Tensor head_weight_gradient = torch::stable::new_empty(head_weight, {model.states, model.hidden});
  Tensor head_bias_gradient = torch::stable::new_empty(head_bias, {model.states});
  gradients.unpack_head(head_weight_gradient, head_bias_gradient);
  return {weight_gradients, head_weight_gradient, head_bias_gradient};
}

}  // namespace

}  // namespace pyar::cpu

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("lstm_log_prob", TORCH_BOX(&pyar::cpu::lstm_log_prob));
  m.impl("lstm_conditional_log_prob", TORCH_BOX(&pyar::cpu::lstm_conditional_log_prob));
  m.impl("lstm_log_prob_backward", TORCH_BOX(&pyar::cpu::lstm_log_prob_backward));
}
