// PixelLSTM's sampling on the CPU: checks, memory, threads. The loops are in sample_kernel.cpp.
#include <optional>
#include <tuple>

#include "cpu/lstm/host.h"
#include "cpu/team.h"

namespace pyar::cpu {

namespace {

// Memory of one slice of samples.
struct Slice {
  Buffer<float> h, c, logits;
  Slice(const PackedLstm& lstm, int64_t count)
      : h(2 * lstm.model.layers * count * lstm.model.stride),
        c(2 * lstm.model.layers * count * lstm.model.stride),
        logits(count * (lstm.model.states + lstm.kernels.width)) {
    h.zero();
    c.zero();
  }
  LstmWorkspace workspace() const { return {h.get(), c.get(), logits.get()}; }
};

// Up to so many samples a thread, the threads share the hidden units of all samples rather than the samples.
constexpr int64_t kTeamSamples = 8;

std::tuple<Tensor, Tensor> sample(const std::vector<Tensor>& weights, const Tensor& head_weight,
                                  const Tensor& head_bias, const Tensor& seed, int64_t num_samples, int64_t first_index,
                                  int64_t num_dims, double temperature, const std::optional<Tensor>& given,
                                  bool bfloat16) {
  Crew crew;
  const std::shared_ptr<const PackedLstm> packed = cached_lstm(crew, {weights, head_weight, head_bias}, bfloat16);
  const PackedLstm& lstm = *packed;
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1 && seed.is_cpu(),
                  "seed must be one int64 on the CPU");
  STD_TORCH_CHECK(num_samples >= 0 && first_index >= 0 && num_dims >= 1,
                  "num_samples and first_index must not be negative and num_dims positive, got ", num_samples, ", ",
                  first_index, ", ", num_dims);
  STD_TORCH_CHECK(temperature > 0, "temperature must be positive, got ", temperature);
  int64_t num_given = 0;
  Tensor forced;
  if (given.has_value()) {
    STD_TORCH_CHECK(given->scalar_type() == ScalarType::Byte && given->is_cpu() && given->dim() == 2 &&
                        given->size(0) == num_samples && given->size(1) <= num_dims,
                    "given must be uint8 [num_samples, at most num_dims] on the CPU");
    num_given = given->size(1);
    forced = torch::stable::contiguous(*given);
    const auto* states = static_cast<const uint8_t*>(forced.const_data_ptr());
    for (int64_t i = 0; i < forced.numel(); ++i)
      STD_TORCH_CHECK(states[i] < lstm.model.states, "given must hold states 0 … ", lstm.model.states - 1, ", got ",
                      static_cast<int>(states[i]));
  }
  Tensor x = torch::stable::new_empty(head_weight, {num_samples, num_dims}, ScalarType::Byte);
  Tensor log_prob = torch::stable::new_empty(head_weight, {num_samples});
  int failed = 0;
  const LstmSample arguments = {&lstm.model,
                                static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr())),
                                first_index,
                                num_dims,
                                static_cast<float>(temperature),
                                num_given > 0 ? static_cast<const uint8_t*>(forced.const_data_ptr()) : nullptr,
                                num_given,
                                static_cast<uint8_t*>(x.mutable_data_ptr()),
                                static_cast<float*>(log_prob.mutable_data_ptr()),
                                &failed};

  const int64_t threads = crew.size();
  const int64_t members = std::min(threads, lstm.model.blocks);
  if (num_samples == 0) return {x, log_prob};
  if (members > 1 && num_samples <= kTeamSamples * threads && num_samples <= kSliceSamples) {
    const Slice slice(lstm, num_samples), alone(lstm, num_samples);
    const LstmWorkspace spare = alone.workspace();
    std::vector<Scratch> scratch;  // all of it now: a member that failed to allocate would leave the others waiting
    for (int64_t member = 0; member < members; ++member) scratch.emplace_back(lstm, num_samples);
    const int64_t step_bytes = lstm.model.layers * 32 * lstm.model.hidden * lstm.model.hidden;  // [4H, 2H] a layer
    run_team(crew, members, step_bytes, [&](Team* team, int rank) {
      lstm.kernels.sample(arguments, 0, num_samples, slice.workspace(), &spare, scratch[rank].scratch(), team, rank);
    });
  } else {
    const int64_t samples = slice_samples(num_samples, threads), slices = (num_samples + samples - 1) / samples;
    crew.share(slices, [&](int64_t index, int64_t) {
      const int64_t first = index * samples, count = std::min(samples, num_samples - first);
      const Slice slice(lstm, count);
      const Scratch scratch(lstm, count);
      lstm.kernels.sample(arguments, first, count, slice.workspace(), nullptr, scratch.scratch(), nullptr, 0);
    });
  }
  STD_TORCH_CHECK(failed == 0, "the logits to sample from are NaN or infinite; check the model's parameters");
  return {x, log_prob};
}

std::tuple<Tensor, Tensor> lstm_sample(const std::vector<Tensor>& weights, const Tensor& head_weight,
                                       const Tensor& head_bias, const Tensor& seed, int64_t num_samples,
                                       int64_t first_index, int64_t num_dims, double temperature,
                                       const std::optional<Tensor>& given) {
  return sample(weights, head_weight, head_bias, seed, num_samples, first_index, num_dims, temperature, given, false);
}

std::tuple<Tensor, Tensor> lstm_sample_bfloat16(const std::vector<Tensor>& weights, const Tensor& head_weight,
                                                const Tensor& head_bias, const Tensor& seed, int64_t num_samples,
                                                int64_t first_index, int64_t num_dims, double temperature,
                                                const std::optional<Tensor>& given) {
  return sample(weights, head_weight, head_bias, seed, num_samples, first_index, num_dims, temperature, given, true);
}

}  // namespace

}  // namespace pyar::cpu

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("lstm_sample", TORCH_BOX(&pyar::cpu::lstm_sample));
  m.impl("lstm_sample_bfloat16", TORCH_BOX(&pyar::cpu::lstm_sample_bfloat16));
}
