// TableNADE on the CPU: what table_nade.cpp hands to table_nade_kernel.cpp. Every column has its own rows of W and V:
// K − 1 and P outputs (1 for K = 2, none for K = 1) for K categories, 2 and 3C for a mixture of C components.
#pragma once

#include "cpu/any_order/network.h"

namespace pyar::cpu {

enum class ColumnKind : int64_t { categories, gaussian, logistic, laplace };  // as pyar.ops.table_nade numbers them

struct TableColumn {
  ColumnKind kind;
  int64_t count;          // K or C
  int64_t inputs, width;  // its first row of W, and how many
  int64_t outputs, P;     // its first output, and how many
  int64_t form;           // columns with one number are evaluated together
  // Of mixtures.
  float min_scale;
  double step, origin, low, high;  // the grid of values; step = 0 if there is none
};

struct TableNadeParameters : Network {
  using Value = float;
  const float* W;              // [ΣF, H]
  const float* V;              // [ΣP, F]
  const float* b;              // [ΣP]
  const TableColumn* columns;  // [D]
};

using TableNadeForward = ForwardQuery<TableNadeParameters>;
using TableNadeSample = SampleQuery<TableNadeParameters>;

// The _scratch functions tell the size of a work space in floats.
#define PYAR_TABLE_NADE_KERNELS                                                                           \
  int64_t table_nade_forward_scratch(const TableNadeParameters&);                                         \
  void table_nade_forward(const TableNadeForward&, int64_t begin_step, int64_t end_step, float* scratch); \
  int64_t table_nade_sample_scratch(const TableNadeParameters&);                                          \
  /* Draws walks begin … end−1; returns false if a conditional was not a distribution. */                 \
  bool table_nade_sample(const TableNadeSample&, int64_t begin, int64_t end, float* scratch);

namespace baseline {
PYAR_TABLE_NADE_KERNELS
}
namespace avx2 {
PYAR_TABLE_NADE_KERNELS
}
namespace avx512 {
PYAR_TABLE_NADE_KERNELS
}
#undef PYAR_TABLE_NADE_KERNELS

}  // namespace pyar::cpu
