// The activations of dense layers.
#pragma once

#include <stdint.h>

namespace pyar::cpu {

enum class Activation : int64_t { relu, sigmoid, tanh };  // in the order of pyar.reference.activations

}  // namespace pyar::cpu
