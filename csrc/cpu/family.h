// The families of a mixture's components.
#pragma once

#include <stdint.h>

namespace pyar::cpu {

enum class Family : int64_t { gaussian, logistic, laplace };  // in the order of pyar.reference.mixtures

}  // namespace pyar::cpu
