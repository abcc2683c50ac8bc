// The layers of a network for any order, for a tile of rows:
//
//   a ← a + what x_i says      h¹ = f(a)      hˡ = f(biasˡ + weightˡ hˡ⁻¹)
//
// A sum is one chain of additions over the inputs in ascending order, whichever rows it is computed beside. After a
// ReLU most inputs are zero, and a chain that leaves out multiply-adds of zero has the bits of the one that has them
// all: v + 0·w is v for finite w, except for the sign of a zero, which the ReLU takes away. So how a layer is computed
// may hang on how many units are active:
//
//   listed   the units that are active in any row of a group, named in a list; the rows of a group in registers
//   dense    all units, a register tile of rows (gemm.h)
#pragma once

#include "cpu/activate.h"
#include "cpu/any_order/network.h"
#include "cpu/dots.h"
#include "cpu/gemm.h"

namespace pyar::cpu::PYAR_LEVEL {

// Weights are packed in panels of kPanel units: [panels][1 + inputs][kPanel], the biases first, zeros where there are
// no more units.
constexpr int64_t kPanel = kTileVectors * kWidth;

PYAR_INLINE int64_t num_panels(int64_t units) { return (units + kPanel - 1) / kPanel; }

PYAR_INLINE int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

// The distance between rows of units: whole panels of every layer, and an odd number of cache lines.
inline int64_t row_stride(const Network& m) {
  int64_t most = padded(m.H);
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const int64_t columns = num_panels(m.layers[l].units) * kPanel;
    most = columns > most ? columns : most;
  }
  return padded(most) | 16;
}

// Up to this part of a layer's inputs, a list of the active ones is faster than all. A lone row always takes the list.
constexpr double kMostListed = 0.9;

// Work space of a tile.
struct WalkTile {
  int64_t stride;   // of rows
  float* units;     // [2][kTileWalks, stride], the units of a layer and of the next
  int32_t* lists;   // [kTileWalks, stride]
  int64_t* counts;  // [kTileWalks], the lengths of the lists
  int64_t* walks;   // [kTileWalks], whose step a row is
  int64_t* steps;   // [kTileWalks], which
  int64_t* dims;    // [kTileWalks], the dimension that it visits
  float* outputs;   // [P, kWidth], of rows that are evaluated together
  float* weights;   // [P, kWidth]
  float* sums;      // [rows, stride], a
  int64_t size;     // floats

  //   rows  of sums
  WalkTile(const Network& m, int64_t rows, float* base) : stride(row_stride(m)) {
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += padded(count);
      return base == nullptr ? nullptr : base + at;
    };
    const auto integers = [&](int64_t count) { return reinterpret_cast<int64_t*>(floats(2 * count)); };
    units = floats(2 * kTileWalks * stride);
    lists = reinterpret_cast<int32_t*>(floats(kTileWalks * stride));
    counts = integers(kTileWalks);
    walks = integers(kTileWalks);
    steps = integers(kTileWalks);
    dims = integers(kTileWalks);
    outputs = floats(m.P * kWidth);
    weights = floats(m.P * kWidth);
    sums = floats(rows * stride);
    size = used;
    // Lanes without a row are computed too, from some number.
    if (base != nullptr) memset(outputs, 0, m.P * kWidth * sizeof(float));
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The first layer.

PYAR_INLINE void prefetch(const float* p, int64_t count) {
  for (int64_t j = 0; j < count; j += 16) __builtin_prefetch(p + j, 0, 2);
}

// a = c; zeros behind.
//   a  [padded(H)]
inline void start_sums(const Network& m, float* a) {
  memcpy(a, m.c, m.H * sizeof(float));
  for (int64_t j = m.H; j < padded(m.H); ++j) a[j] = 0.0f;
}

// a ← a + Σ_n values_n rows_n, and h = f(a) unless h is null. The first value is one.
//   rows  [N][H]
//   a, h  [padded(H)]
template <int N>
PYAR_INLINE void add_rows(const Network& m, const float* const (&rows)[N], const float (&values)[N], float* a,
                          float* h) {
  const auto part = [&](int64_t j, int count) __attribute__((always_inline)) {
    const auto row = [&](int n) __attribute__((always_inline)) {
      return count == kWidth ? load(rows[n] + j) : load_first(rows[n] + j, count);
    };
    Vector term = row(0);
#pragma GCC unroll 2
    for (int n = 1; n < N; ++n) term = fused_multiply_add(broadcast(values[n]), row(n), term);
    const Vector value = load(a + j) + term;
    store(a + j, value);
    if (h != nullptr) store(h + j, activate(m.activation, value));
  };
  int64_t j = 0;
  for (; j + kWidth <= m.H; j += kWidth) part(j, kWidth);
  if (j < m.H) part(j, static_cast<int>(m.H - j));
}

// The same for category `state` of those whose rows are at w: a ← a + (u + w[state − 1]), the second part unless the
// state is zero.
//   u [H] · w [states − 1, H]
inline void add_state(const Network& m, const float* u, const float* w, int64_t state, float* a, float* h) {
  if (state > 0) {
    add_rows<2>(m, {u, w + (state - 1) * m.H}, {1.0f, 1.0f}, a, h);
  } else {
    add_rows<1>(m, {u}, {1.0f}, a, h);
  }
}

// h = f(a).
//   a, h  [padded(H)]
inline void read_sums(const Network& m, const float* a, float* h) {
  for (int64_t j = 0; j < padded(m.H); j += kWidth) store(h + j, activate(m.activation, load(a + j)));
}

// ---------------------------------------------------------------------------------------------------------------------
// The layers behind it.

#if defined(__AVX2__) && !defined(__AVX512F__)
// The places of the bits that are set in a byte, one behind the other.
struct BitPlaces {
  uint64_t of[256];
  constexpr BitPlaces() : of() {
    for (int mask = 0; mask < 256; ++mask) {
      int count = 0;
      for (int bit = 0; bit < 8; ++bit)
        if (mask >> bit & 1) of[mask] |= static_cast<uint64_t>(bit) << 8 * count++;
    }
  }
};
constexpr BitPlaces kBitPlaces;
#endif

// list = the lanes of v that are not zero, as first, first + 1, …; returns how many. Up to kWidth places are written.
PYAR_INLINE int64_t list_lanes(IntVector v, int64_t first, int32_t* list) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_test_epi32_mask((__m512i)v, (__m512i)v);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lane);
  _mm512_storeu_si512(list, _mm512_maskz_compress_epi32(mask, place));
  return __builtin_popcount(mask);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_cmpeq_epi32((__m256i)v, _mm256_setzero_si256());
  const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(zero)) ^ 0xff;
  const __m256i lane = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kBitPlaces.of[mask])));
  const __m256i place = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)), lane);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(list), place);
  return __builtin_popcount(mask);
#else
  int64_t count = 0;
  for (int i = 0; i < kWidth; ++i) {
    list[count] = static_cast<int32_t>(first + i);
    count += v[i] != 0;
  }
  return count;
#endif
}

// list = the units that are not zero in one of M rows, in ascending order; returns how many. No unit is −0, and those
// behind `count` are zero.
//   units  [M, count]
//   list   [count + kWidth]
template <int M>
int64_t list_active(const float* units, int64_t stride, int64_t count, int32_t* list) {
  int64_t length = 0;
  for (int64_t j = 0; j < count; j += kWidth) {
    IntVector any = {};
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) any |= (IntVector)load(units + m * stride + j);
    length += list_lanes(any, j, list + length);
  }
  return length;
}

// sum[m] += Σ_{k in list} in[m·stride + k] · panel[k], in the order of the list.
//   panel  [inputs][kPanel]
template <int M>
PYAR_INLINE void add_listed(Vector (&sum)[M][kTileVectors], const float* in, int64_t stride, const int32_t* list,
                            int64_t count, const float* panel) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = list[i];
    const float* row = panel + k * kPanel;
    Vector operand[kTileVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kTileVectors; ++n) operand[n] = load(row + n * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vector value = broadcast(in[m * stride + k]);
#pragma GCC unroll 4
      for (int n = 0; n < kTileVectors; ++n) sum[m][n] = fused_multiply_add(value, operand[n], sum[m][n]);
    }
  }
}

// Visits rows 0 … count−1 in groups: of one row each, or as for_row_tiles().
template <bool kAlike, class Visit>
PYAR_INLINE void for_groups(int64_t count, const Visit& visit) {
  if constexpr (kAlike) {
    for_row_tiles(count, visit);
  } else {
    for (int64_t row = 0; row < count; ++row) visit(TileRows<1>{}, row);
  }
}

// out = f(bias + weight in), for `rows` rows.
//   kAlike  neighbouring rows have about the same active units: a list serves a group of them
//   in      [rows, inputs]; out  [rows, whole panels]
template <bool kAlike>
void forward_layer(const HiddenLayer& layer, Activation f, const WalkTile& t, int64_t rows, const float* in,
                   float* out) {
  bool listed = f == Activation::relu && layer.finite;
  if (listed) {
    int64_t groups = 0, total = 0;
    for_groups<kAlike>(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      t.counts[row] = list_active<M>(in + row * t.stride, t.stride, layer.inputs, t.lists + row * t.stride);
      total += t.counts[row];
      ++groups;
    });
    listed = rows == 1 || total <= kMostListed * static_cast<double>(groups * layer.inputs);
  }
  for (int64_t p = 0; p < num_panels(layer.units); ++p) {
    const float* bias = layer.packed + p * (1 + layer.inputs) * kPanel;
    const float* panel = bias + kPanel;
    float* columns = out + p * kPanel;
    if (listed) {
      for_groups<kAlike>(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
        constexpr int M = decltype(tile)::rows;
        Vector sum[M][kTileVectors];
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < kTileVectors; ++n) sum[m][n] = load(bias + n * kWidth);
        add_listed<M>(sum, in + row * t.stride, t.stride, t.lists + row * t.stride, t.counts[row], panel);
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < kTileVectors; ++n)
            store(columns + (row + m) * t.stride + n * kWidth, activate(Activation::relu, sum[m][n]));
      });
      continue;
    }
    for (int64_t k = 0; k < layer.inputs; k += kTileDepth) {
      const int64_t depth = layer.inputs - k < kTileDepth ? layer.inputs - k : kTileDepth;
      const bool last = k + depth == layer.inputs;
      for_row_tiles(rows, [&](auto tile, int64_t row) __attribute__((always_inline)) {
        constexpr int M = decltype(tile)::rows;
        Vector sum[M][kTileVectors];
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < kTileVectors; ++n)
            sum[m][n] = load(k == 0 ? bias + n * kWidth : columns + (row + m) * t.stride + n * kWidth);
        multiply_accumulate<M, kTileVectors>(sum, in + row * t.stride + k, t.stride, 1, panel + k * kPanel, depth);
        for (int m = 0; m < M; ++m)
          for (int n = 0; n < kTileVectors; ++n)
            store(columns + (row + m) * t.stride + n * kWidth, last ? activate(f, sum[m][n]) : sum[m][n]);
      });
    }
  }
}

// The units of the last layer from those of the first, t.units: returns where they are, [rows, F].
template <bool kAlike>
const float* forward_layers(const Network& m, const WalkTile& t, int64_t rows) {
  float *in = t.units, *out = t.units + kTileWalks * t.stride;
  for (int64_t l = 0; l < m.num_layers; ++l) {
    forward_layer<kAlike>(m.layers[l], m.activation, t, rows, in, out);
    float* const next = in;
    in = out;
    out = next;
  }
  return in;
}

// t.outputs[k, lane] = b_k + V_k h for k < P.
//   V [P, F] · b [P] · h [F]
PYAR_INLINE void output_lane(const Network& m, const WalkTile& t, int64_t lane, const float* V, const float* b,
                             int64_t P, const float* h) {
  float* out = t.outputs + lane;
  dots(h, V, m.F, P, m.F, out, kWidth);
  for (int64_t k = 0; k < P; ++k) out[k * kWidth] += b[k];
}

// Divides P outputs of all lanes by the temperature.
PYAR_INLINE void cool(const WalkTile& t, int64_t P, float temperature) {
  if (temperature == 1.0f) return;
  for (int64_t i = 0; i < P * kWidth; i += kWidth) store(t.outputs + i, load(t.outputs + i) / broadcast(temperature));
}

}  // namespace pyar::cpu::PYAR_LEVEL
