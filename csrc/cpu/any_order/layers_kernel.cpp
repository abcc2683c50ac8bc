// How dense layers are packed for one instruction-set level.
#include "cpu/any_order/layers.h"

namespace pyar::cpu::PYAR_LEVEL {

int64_t dense_panels(int64_t units) { return num_panels(units); }

int64_t dense_packed_floats(int64_t inputs, int64_t units) { return num_panels(units) * (1 + inputs) * kPanel; }

bool dense_pack(const HiddenLayer& layer, int64_t begin, int64_t end, float* packed) {
  constexpr int64_t kLine = 16;  // floats of a row that come from memory together
  IntVector wild = {};
  for (int64_t p = begin; p < end; ++p) {
    float* const biases = packed + p * (1 + layer.inputs) * kPanel;
    float* const panel = biases + kPanel;
    const int64_t first = p * kPanel, units = layer.units - first < kPanel ? layer.units - first : kPanel;
    for (int64_t j = 0; j < kPanel; ++j) biases[j] = j < units ? layer.bias[first + j] : 0.0f;
    for (int64_t k0 = 0; k0 < layer.inputs; k0 += kLine) {
      const int64_t k1 = k0 + kLine < layer.inputs ? k0 + kLine : layer.inputs;
      for (int64_t j = 0; j < kPanel; ++j) {
        const float* row = layer.weight + (first + j) * layer.inputs;
        for (int64_t k = k0; k < k1; ++k) panel[k * kPanel + j] = j < units ? row[k] : 0.0f;
      }
    }
    for (int64_t i = 0; i < layer.inputs * kPanel; i += kWidth)
      wild |= ((IntVector)load(panel + i) & 0x7f800000) == 0x7f800000;
  }
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= wild[i];
  return any == 0;
}

}  // namespace pyar::cpu::PYAR_LEVEL
