// What RNADE's log-density, gradient and sampling share: a tile of samples, one in every lane.
//
//   a_0 = c,   a_{d+1} = a_d + x_d W_d,   h_d = f(ρ_d a_d),   outputs_d = V_d h_d + b_d
//
// Uria, Murray & Larochelle, "RNADE: The real-valued neural autoregressive density-estimator", NIPS 2013. The sums run
// over units and outputs in ascending order in every lane: a sample has the same bits in every tile, and on every level
// with fused multiply-add.
#pragma once

#include "cpu/activate.h"
#include "cpu/gemm.h"
#include "cpu/mixture.h"
#include "cpu/rnade/kernel.h"

namespace pyar::cpu::PYAR_LEVEL {

PYAR_INLINE int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

// Calls visit(TileVectors<N>, vector) for vectors 0 … count−1 in groups of nearly equal size, kTileVectors at most.
template <int N>
struct TileVectors {
  static constexpr int vectors = N;
};

template <class Visit>
PYAR_INLINE void for_vectors(int64_t count, const Visit& visit) {
  const int64_t groups = (count + kTileVectors - 1) / kTileVectors;
  int64_t vector = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t next = count * (g + 1) / groups;
    switch (next - vector) {
      case 1:
        visit(TileVectors<1>{}, vector);
        break;
      case 2:
        visit(TileVectors<2>{}, vector);
        break;
      case 3:
        visit(TileVectors<3>{}, vector);
        break;
      default:
        visit(TileVectors<4>{}, vector);
        break;
    }
    vector = next;
  }
}

// Calls visit(TileVectors<N>, first, n) for the samples [begin, end) in tiles of N vectors.
template <class Visit>
PYAR_INLINE void for_tiles(int64_t begin, int64_t end, const Visit& visit) {
  for_vectors((end - begin + kWidth - 1) / kWidth, [&](auto tile, int64_t vector) __attribute__((always_inline)) {
    const int64_t first = begin + vector * kWidth, last = first + decltype(tile)::vectors * kWidth;
    visit(tile, first, (last < end ? last : end) - first);
  });
}

// Calls visit with the activation, or with the family, as a constant.
template <auto kValue>
struct Choice {
  static constexpr auto value = kValue;
};

template <class Visit>
PYAR_INLINE void with_activation(Activation f, const Visit& visit) {
  switch (f) {
    case Activation::sigmoid:
      return visit(Choice<Activation::sigmoid>{});
    case Activation::tanh:
      return visit(Choice<Activation::tanh>{});
    default:
      return visit(Choice<Activation::relu>{});
  }
}

template <class Visit>
PYAR_INLINE void with_family(Family family, const Visit& visit) {
  switch (family) {
    case Family::logistic:
      return visit(Choice<Family::logistic>{});
    case Family::laplace:
      return visit(Choice<Family::laplace>{});
    default:
      return visit(Choice<Family::gaussian>{});
  }
}

// Work space of a tile of up to kTileVectors vectors. Rows are as long as the tile's vectors, one behind the other.
struct RnadeTile {
  static constexpr int64_t kLanes = kTileVectors * kWidth;
  float* a;        // [H, lanes]
  float* h;        // [H, lanes]
  float* outputs;  // [P, lanes]
  float* weights;  // [C, lanes]
  float* values;   // [lanes], x_d
  float* terms;    // [lanes]
  int64_t size;    // floats

  RnadeTile(const RnadeParameters& m, float* base) {
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += padded(count);
      return base == nullptr ? nullptr : base + at;
    };
    a = floats(m.H * kLanes);
    h = floats(m.H * kLanes);
    outputs = floats(m.P * kLanes);
    weights = floats(m.C * kLanes);
    values = floats(kLanes);
    terms = floats(kLanes);
    size = used;
  }
};

// a = c before the first step, else a ← a + x_{d−1} W_{d−1}; and h = f(ρ_d a).
//   values  [lanes], x_{d−1}
//   a, h    [H, lanes]
template <int N>
void take_value(const RnadeParameters& m, int64_t d, const float* values, float* a, float* h) {
  constexpr int64_t lanes = N * kWidth;
  const Vector rho = broadcast(m.rho[d]);
  with_activation(m.activation, [&](auto f) __attribute__((always_inline)) {
    const auto units = [&](float* to, int64_t at, Vector value) __attribute__((always_inline)) {
      store(to + at, value);
      store(h + at, activate(f.value, rho * value));
    };
    if (d == 0) {
      for (int64_t j = 0; j < m.H; ++j)
        for (int v = 0; v < N; ++v) units(a, j * lanes + v * kWidth, broadcast(m.c[j]));
      return;
    }
    const float* w = m.W + (d - 1) * m.H;
    Vector x[N];
    for (int v = 0; v < N; ++v) x[v] = load(values + v * kWidth);
    for (int64_t j = 0; j < m.H; ++j) {
      const Vector row = broadcast(w[j]);
      for (int v = 0; v < N; ++v) {
        const int64_t at = j * lanes + v * kWidth;
        units(a, at, fused_multiply_add(x[v], row, load(a + at)));
      }
    }
  });
}

// A product over more units than kLongestChain is a sum of chains of kChain: one long chain would lose digits.
constexpr int64_t kLongestChain = 64, kChain = 32;

// outputs = b_d + V_d h for N vectors of lanes.
//   h        [H, N·kWidth], `lanes` apart
//   outputs  [P, N·kWidth], `lanes` apart
template <int N>
void output_rows(const RnadeParameters& m, int64_t d, int64_t lanes, const float* h, float* outputs) {
  const float* V = m.V + d * m.P * m.H;
  const float* b = m.b + d * m.P;
  const int64_t most = m.H <= kLongestChain ? m.H : kChain;
  for (int64_t k = 0; k < m.H; k += most) {
    const int64_t depth = m.H - k < most ? m.H - k : most;
    for_row_tiles(m.P, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      multiply_accumulate<M, N>(sum, V + row * m.H + k, m.H, 1, h + k * lanes, depth, lanes);
      for (int i = 0; i < M; ++i)
        for (int v = 0; v < N; ++v) {
          float* const out = outputs + (row + i) * lanes + v * kWidth;
          store(out, (k == 0 ? broadcast(b[row + i]) : load(out)) + sum[i][v]);
        }
    });
  }
}

// terms = ln p(values) by the outputs, which are overwritten.
inline void log_densities(const RnadeParameters& m, int64_t lanes, const float* values, float* outputs, float* terms) {
  with_family(m.family, [&](auto family) __attribute__((always_inline)) {
    for (int64_t i = 0; i < lanes; i += kWidth) {
      const Vector term = mixture_log_density<decltype(family)::value, false>(
          outputs + i, lanes, m.C, load(values + i), broadcast(m.min_scale), nullptr, Vector{}, nullptr);
      store(terms + i, term);
    }
  });
}

}  // namespace pyar::cpu::PYAR_LEVEL
