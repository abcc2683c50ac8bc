// NADE's hidden units of one sample, in one of two forms:
//
//   additive   a ← a + W[d, x_d],                 h = σ(a)
//   product    E ← E·e^(−W[d, 1]),                h = 1 / (1 + E),      where E = e^(−a)
//
// The product form takes no exponential where a state is seen or drawn: the factors e^(−W) are made once a call. It is
// for two states, where every change is by the same row; of many states' rows most would be used seldom.
//
// Which form a sample is in follows from the parameters and that sample's states alone, so that its bits depend on no
// batch, tile or thread: two states begin in the product form, and a sample in which |a| could pass kRange goes on in
// the additive form, from a summed anew. All samples keep a bound on |a|: what a change can add to it is added, and
// where that passes kRange, the bound is measured.
#pragma once

#include "cpu/nade/products.h"

namespace pyar::cpu::PYAR_LEVEL {

constexpr float kRange = 80.0f;                // e^80 and e^−80 are normal numbers with room to spare
constexpr float kAdditive = __builtin_inff();  // the bound of a sample in the additive form
constexpr int64_t kReciprocals = 2 * kLanes;   // units whose reciprocals are computed together

// The units of one sample: a [H] or E [H], padded, and the bound on |a|.
struct Units {
  float* row;
  float* bound;
};

// What state 1 of a dimension multiplies E by: [H], padded with what changes nothing; and max |W|, or NaN. Where that
// is small, the factors are kept less one, E ← E + E·(e^(−W) − 1), for digits that e^(−W) would lose near one; where it
// is not, e^(−W) − 1 would lose those of e^(−W) near zero.
constexpr float kSmall = 0.34f;  // below ln 2 / 2

struct Factors {
  const float* row;
  float largest;
};

// a_j += scale·w_j (if w is not null), then h_j = σ(a_j) (if h is not null), for j < H.
//   a, h  [H], padded; their padding is finite
//   w     [H]
PYAR_INLINE void update_hidden(float* a, const float* w, float scale, float* h, int64_t H) {
  const Vector factor = broadcast(scale);
  for (int64_t j = 0; j < padded(H); j += kWidth) {
    Vector value = load(a + j);
    if (w != nullptr && j < H) {
      const Vector weight = j + kWidth <= H ? load(w + j) : load_first(w + j, static_cast<int>(H - j));
      value = fused_multiply_add(factor, weight, value);
      store(a + j, value);
    }
    if (h != nullptr) store(h + j, sigmoid(value));
  }
}

// What state x > 0 of dimension d adds to the activation: a row of W and its factor.
PYAR_INLINE const float* input_row(const NadeParameters& m, int64_t d, int x, float* scale) {
  if (m.scalar_input) {
    *scale = static_cast<float>(x) / static_cast<float>(m.K - 1);
    return m.W + d * m.H;
  }
  *scale = 1.0f;
  return m.W + (d * (m.K - 1) + x - 1) * m.H;
}

PYAR_INLINE void prefetch(const float* p, int64_t count) {
  for (int64_t j = 0; j < count; j += kPadding) __builtin_prefetch(p + j, 0, 2);
}

// Asks for the row of W that state x of dimension d will need. Which row that is follows no pattern, so that otherwise
// every one is waited for; a single row for all states of a dimension needs no help.
PYAR_INLINE void prefetch_input(const NadeParameters& m, int64_t d, int x) {
  if (x != 0 && m.K > 2 && !m.scalar_input) prefetch(m.W + (d * (m.K - 1) + x - 1) * m.H, m.H);
}

// ---------------------------------------------------------------------------------------------------------------------
// The factors.

// max_j |w_j|, or NaN if one is NaN.
inline float largest_magnitude(const float* w, int64_t H) {
  IntVector largest = {};  // as integers, so that NaN is the largest of all
  for (int64_t j = 0; j < H; j += kWidth) {
    const Vector weight = j + kWidth <= H ? load(w + j) : load_first(w + j, static_cast<int>(H - j));
    const IntVector magnitude = (IntVector)absolute(weight);
    largest = magnitude > largest ? magnitude : largest;
  }
  int32_t most = 0;
  for (int lane = 0; lane < kWidth; ++lane) most = largest[lane] > most ? largest[lane] : most;
  float result;
  memcpy(&result, &most, sizeof result);
  return result;
}

// factors_j = e^(−w_j), or e^(−w_j) − 1 where all are small, for j < H, and the same of zeros behind. Returns
// largest_magnitude().
inline float make_factors(const float* w, int64_t H, float* factors) {
  const float largest = largest_magnitude(w, H);
  const bool small = largest <= kSmall;
  for (int64_t j = 0; j < padded(H); j += kWidth) {
    const int64_t left = H - j < 0 ? 0 : H - j;
    const Vector weight = left >= kWidth ? load(w + j) : load_first(w + j, static_cast<int>(left));
    if (small) {
      store(factors + j, small_exponential_minus_one(-weight));
    } else {
      Vector power, t;
      split_exponential(-weight, &power, &t);
      store(factors + j, fused_multiply_add(power, t, power));
    }
  }
  return largest;
}

// The factors of dimension d: from the call's table, or made in `spare`, [H] padded.
PYAR_INLINE Factors factors_of(const NadeParameters& m, int64_t d, float* spare) {
  if (m.factors != nullptr) return {m.factors + d * row_stride(m.H), m.largest[d]};
  return {spare, make_factors(m.W + d * m.H, m.H, spare)};
}

// ---------------------------------------------------------------------------------------------------------------------
// The product form.

// E_j ← E_j u_j, or E_j u_j + E_j where `small`, (kUpdate), h_j = 1 / (1 + E_j) (kept in h if kStore) and
// out[r·out_stride] = Σ_j V[r·stride + j] h_j for r < kRows. One division serves two units, j and j + 16 of every 32;
// where E is so large that the product of two could overflow, h is as small as at 2⁶².
//   E, h  [H], padded
//   u     [H], padded: factors
//   V     [kRows, columns]; columns: H, or padded(H) with zeros behind H
template <bool kUpdate, bool kStore, int kRows>
__attribute__((noinline)) void product_rows(float* E, const float* u, bool small, float* h, int64_t H, const float* V,
                                            int64_t stride, int64_t columns, float* out, int64_t out_stride) {
  Vector sum[kRows > 0 ? kRows : 1][kParts] = {};
  const int32_t mask = small ? -1 : 0;
  const auto denominator = [&](int64_t at) __attribute__((always_inline)) {
    Vector value = load(E + at);
    if constexpr (kUpdate) {
      value = fused_multiply_add(value, load(u + at), (Vector)((IntVector)value & mask));
      store(E + at, value);
    }
    return 1.0f + minimum(broadcast(0x1p62f), value);
  };
  const auto use = [&](int64_t at, int p, Vector value, bool whole) __attribute__((always_inline)) {
    if constexpr (kStore) store(h + at, value);
    const int count = whole ? kWidth
                            : static_cast<int>(columns - at < 0        ? 0
                                               : columns - at < kWidth ? columns - at
                                                                       : kWidth);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const float* row = V + r * stride + at;
      sum[r][p] = fused_multiply_add(whole ? load(row) : load_first(row, count), value, sum[r][p]);
    }
  };
  const auto pair = [&](int64_t j, bool whole) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = j + p * kWidth;
      const Vector one = denominator(at), two = denominator(at + kLanes);
      const Vector reciprocal = 1.0f / (one * two);
      use(at, p, reciprocal * two, whole);
      use(at + kLanes, p, reciprocal * one, whole);
    }
  };
  const int64_t end = padded(H), readable = kRows == 0 || columns > end ? end : columns;
  int64_t j = 0;
  for (; j + kReciprocals <= readable; j += kReciprocals) pair(j, true);
  if (j + kReciprocals <= end) {
    pair(j, false);
  } else if (j < end) {
    for (int p = 0; p < kParts; ++p) use(j + p * kWidth, p, 1.0f / denominator(j + p * kWidth), false);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) out[r * out_stride] = sum_of_lanes(sum[r]);
}

constexpr int64_t kFusedRows = 4;  // rows of V that product_rows() takes at most

// product_rows() for `rows` rows, 0 … kFusedRows.
template <bool kUpdate, bool kStore>
PYAR_INLINE void product_step(float* E, const Factors& factors, float* h, int64_t H, const Rows& V, int64_t rows,
                              float* out, int64_t out_stride) {
  switch (rows) {
#define PYAR_CASE(c)                                                                                           \
  case c:                                                                                                      \
    return product_rows<kUpdate, kStore, c>(E, factors.row, factors.largest <= kSmall, h, H, V.data, V.stride, \
                                            V.columns, out, out_stride)
    PYAR_CASE(1);
    PYAR_CASE(2);
    PYAR_CASE(3);
    PYAR_CASE(4);
#undef PYAR_CASE
    default:
      if constexpr (kUpdate || kStore)
        return product_rows<kUpdate, kStore, 0>(E, factors.row, factors.largest <= kSmall, h, H, V.data, V.stride,
                                                V.columns, out, out_stride);
  }
}

// A strip: dimensions whose rows and factors stay in the first-level cache while a tile of samples passes, and whose
// logits one sweep over the units makes.
constexpr int kStrip = 4;

template <int N>
struct Constant {
  static constexpr int value = N;
};

enum class Keep { none, last, all };  // which of a strip's hidden units are wanted again

// The steps of product_rows() for a whole strip, bit for bit, with E read and written once: bit s of kChanges tells
// that E is multiplied by u[s] before dimension s. out[s] = Σ_j V[s·stride + j] h_j with h as it is then.
//   E       [H], padded
//   u       [kStrip][H], padded: factors; small [kStrip]: −1 where E is added, else 0
//   hidden  [runs, H], `stride` apart: in the first row h as it is, if dimension 0 changes nothing. Keep::all leaves
//           those of every run there, Keep::last the last in the first row
//   V       [kStrip, H], `stride` apart, padded with zeros
template <int kChanges, Keep kKeep>
__attribute__((noinline)) void product_strip(float* E, const float* const* u, const int32_t* small, float* hidden,
                                             int64_t H, const float* V, int64_t stride, float* out) {
  constexpr int kLast = kChanges == 0 ? -1 : 31 - __builtin_clz(kChanges);
  Vector sum[kStrip][kParts] = {};
  // Groups of sixteen units at j, and at j + 16 where there are two.
  const auto groups = [&](int64_t j, auto count) __attribute__((always_inline)) {
    constexpr bool kTwo = decltype(count)::value == 2;
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = j + p * kWidth;
      Vector first = load(E + at), second = {}, h = {}, h_second = {};
      if constexpr (kTwo) second = load(E + at + kLanes);
      if constexpr (kChanges % 2 == 0) {
        h = load(hidden + at);
        if constexpr (kTwo) h_second = load(hidden + at + kLanes);
      }
      float* row = hidden + at;
#pragma GCC unroll 4
      for (int s = 0; s < kStrip; ++s) {
        if ((kChanges >> s & 1) != 0) {
          first = fused_multiply_add(first, load(u[s] + at), (Vector)((IntVector)first & small[s]));
          const Vector one = 1.0f + minimum(broadcast(0x1p62f), first);
          if constexpr (kTwo) {
            second = fused_multiply_add(second, load(u[s] + at + kLanes), (Vector)((IntVector)second & small[s]));
            const Vector other = 1.0f + minimum(broadcast(0x1p62f), second);
            const Vector reciprocal = 1.0f / (one * other);
            h = reciprocal * other;
            h_second = reciprocal * one;
          } else {
            h = 1.0f / one;
          }
          if (kKeep == Keep::all && s > 0) row += stride;
          if (kKeep == Keep::all || (kKeep == Keep::last && s == kLast)) {
            store(row, h);
            if constexpr (kTwo) store(row + kLanes, h_second);
          }
        }
        sum[s][p] = fused_multiply_add(load(V + s * stride + at), h, sum[s][p]);
        if constexpr (kTwo) sum[s][p] = fused_multiply_add(load(V + s * stride + at + kLanes), h_second, sum[s][p]);
      }
      if constexpr (kChanges != 0) {
        store(E + at, first);
        if constexpr (kTwo) store(E + at + kLanes, second);
      }
    }
  };
  const int64_t end = padded(H);
  int64_t j = 0;
  for (; j + kReciprocals <= end; j += kReciprocals) groups(j, Constant<2>{});
  if (j < end) groups(j, Constant<1>{});
  Vector folded[kStrip];
  for (int s = 0; s < kStrip; ++s) folded[s] = fold(sum[s]);
  horizontal_sums(folded, out);
}

template <Keep kKeep>
PYAR_INLINE void product_strip(int changes, float* E, const float* const* u, const int32_t* small, float* hidden,
                               int64_t H, const float* V, int64_t stride, float* out) {
  switch (changes) {
#define PYAR_CASE(c) \
  case c:            \
    return product_strip<c, kKeep>(E, u, small, hidden, H, V, stride, out)
    PYAR_CASE(0);
    PYAR_CASE(1);
    PYAR_CASE(2);
    PYAR_CASE(3);
    PYAR_CASE(4);
    PYAR_CASE(5);
    PYAR_CASE(6);
    PYAR_CASE(7);
    PYAR_CASE(8);
    PYAR_CASE(9);
    PYAR_CASE(10);
    PYAR_CASE(11);
    PYAR_CASE(12);
    PYAR_CASE(13);
    PYAR_CASE(14);
    PYAR_CASE(15);
#undef PYAR_CASE
    default:
      return;
  }
}

// A bound on |a| = |ln E| of all units, by their exponents.
inline float measured_bound(const float* E, int64_t H) {
  Vector highest = load(E), lowest = highest;
  for (int64_t j = 0; j < padded(H); j += kWidth) {
    highest = maximum(highest, load(E + j));
    lowest = minimum(lowest, load(E + j));
  }
  int most = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    int above, below;  // 2^(above − 1) ≤ E < 2^above
    frexpf(highest[lane], &above);
    frexpf(lowest[lane], &below);
    most = above > most ? above : most;
    most = 1 - below > most ? 1 - below : most;
  }
  return 0.6931473f * static_cast<float>(most);
}

// ---------------------------------------------------------------------------------------------------------------------
// Units in either form.

// The units before the first dimension, a = c.
inline void start_units(const NadeParameters& m, const Units& units) {
  memcpy(units.row, m.c, m.H * sizeof(float));
  for (int64_t j = m.H; j < padded(m.H); ++j) units.row[j] = 0.0f;
  *units.bound = kAdditive;
  if (m.K != 2) return;
  float largest = 0.0f;
  for (int64_t j = 0; j < m.H; ++j) {
    if (!(fabsf(m.c[j]) <= kRange)) return;  // too large, or NaN
    largest = fabsf(m.c[j]) > largest ? fabsf(m.c[j]) : largest;
  }
  *units.bound = largest;
  for (int64_t j = 0; j < padded(m.H); j += kWidth) {
    Vector power, t;
    split_exponential(-load(units.row + j), &power, &t);
    store(units.row + j, fused_multiply_add(power, t, power));
  }
}

// Copies the units of one sample.
PYAR_INLINE void copy_units(const NadeParameters& m, const Units& from, const Units& to) {
  memcpy(to.row, from.row, padded(m.H) * sizeof(float));
  *to.bound = *from.bound;
}

// Whether state 1 of dimension d may be multiplied to the units. If not, they are in the additive form when this
// returns, with a summed anew over the dimensions before d.
//   x  [D], the sample's states
inline bool stays_product(const NadeParameters& m, const uint8_t* x, int64_t d, const Factors& factors,
                          const Units& units) {
  if (*units.bound + factors.largest <= kRange) {
    *units.bound += factors.largest;
    return true;
  }
  if (*units.bound == kAdditive) return false;
  *units.bound = measured_bound(units.row, m.H) + factors.largest;
  if (*units.bound <= kRange) return true;
  *units.bound = kAdditive;
  memcpy(units.row, m.c, m.H * sizeof(float));
  for (int64_t j = m.H; j < padded(m.H); ++j) units.row[j] = 0.0f;
  for (int64_t e = 0; e < d; ++e)
    if (x[e] != 0) update_hidden(units.row, m.W + e * m.H, 1.0f, nullptr, m.H);
  return false;
}

// The units after dimension d, where x_d > 0; their h, if h is not null; and out[r·out_stride] = Σ_j V[r, j] h_j for
// r < rows. Where more than kFusedRows are wanted, h must not be null.
//   x      [D], the sample's states
//   h      [H], padded
//   V      [rows, H]
//   spare  [2, row_stride(H)], work space
inline void add_input(const NadeParameters& m, const uint8_t* x, int64_t d, const Units& units, float* h, const Rows& V,
                      int64_t rows, float* out, int64_t out_stride, float* spare) {
  int64_t done = 0;
  if (*units.bound < kAdditive) {
    const Factors factors = factors_of(m, d, spare);
    if (stays_product(m, x, d, factors, units)) {
      done = rows < kFusedRows ? rows : kFusedRows;
      if (h != nullptr)
        product_step<true, true>(units.row, factors, h, m.H, V, done, out, out_stride);
      else
        product_step<true, false>(units.row, factors, h, m.H, V, done, out, out_stride);
      if (done == rows) return;
      return dots(h, V.data + done * V.stride, V.stride, rows - done, V.columns, out + done * out_stride, out_stride);
    }
  }
  float scale;
  const float* w = input_row(m, d, x[d], &scale);
  float* hidden = h == nullptr && rows > 0 ? spare : h;
  update_hidden(units.row, w, scale, hidden, m.H);
  if (rows > 0) dots(hidden, V.data, V.stride, rows, V.columns, out, out_stride);
}

PYAR_INLINE void add_input(const NadeParameters& m, const uint8_t* x, int64_t d, const Units& units, float* h,
                           float* spare) {
  add_input(m, x, d, units, h, {}, 0, nullptr, 0, spare);
}

// h [H], padded, of the units as they are, and out[r·out_stride] = Σ_j V[r, j] h_j for r < rows.
inline void read_units(const NadeParameters& m, const Units& units, float* h, const Rows& V, int64_t rows, float* out,
                       int64_t out_stride) {
  int64_t done = 0;
  if (*units.bound < kAdditive) {
    done = rows < kFusedRows ? rows : kFusedRows;
    product_step<false, true>(units.row, Factors{}, h, m.H, V, done, out, out_stride);
  } else {
    update_hidden(units.row, nullptr, 0.0f, h, m.H);
  }
  if (done < rows)
    dots(h, V.data + done * V.stride, V.stride, rows - done, V.columns, out + done * out_stride, out_stride);
}

PYAR_INLINE void read_units(const NadeParameters& m, const Units& units, float* h) {
  read_units(m, units, h, {}, 0, nullptr, 0);
}

// logits[s] = Σ_j V[d + s, j] h_j for the dimensions d + s < d + dims of one strip of one sample, where the call has a
// table. Before each dimension its predecessor's state is added to the units; before the first not, where `fresh`: then
// the units are as they should be, but their h are not there yet.
//   x       [D], the sample's states
//   hidden  [runs, row_stride(H)] with Keep::all: those of run r in row r, run[s] the run of dimension d + s, and
//   run[−1]
//           that before. Else [H]: h before and after
//   logits  [dims]
//   spare   [2, row_stride(H)], work space
template <Keep kKeep>
inline void walk_strip(const NadeParameters& m, const uint8_t* x, int64_t d, int64_t dims, bool fresh,
                       const Units& units, float* hidden, int32_t* run, float* logits, float* spare) {
  const int64_t stride = row_stride(m.H);
  const bool changed = !fresh && x[d - 1] != 0;
  if constexpr (kKeep == Keep::all) {
    int32_t r = fresh ? 0 : run[-1] + (changed ? 1 : 0);
    hidden += r * stride;
    for (int64_t s = 0; s < dims; ++s) {
      run[s] = r;
      r += x[d + s] != 0 ? 1 : 0;
    }
  }
  const float* V = m.rows + d * stride;
  if (dims == kStrip && *units.bound < kAdditive) {
    const float* u[kStrip];
    int32_t small[kStrip];
    int changes = fresh || changed ? 1 : 0;
    float bound = *units.bound;
    for (int s = 0; s < kStrip; ++s) {
      const int64_t before = s == 0 && fresh ? m.D : d + s - 1;  // row D changes nothing
      if (s > 0 && x[before] != 0) changes |= 1 << s;
      if ((changes >> s & 1) == 0) continue;
      u[s] = m.factors + before * stride;
      small[s] = m.largest[before] <= kSmall ? -1 : 0;
      bound += m.largest[before];
    }
    if (bound <= kRange) {
      *units.bound = bound;
      return product_strip<kKeep>(changes, units.row, u, small, hidden, m.H, V, stride, logits);
    }
  }
  for (int64_t s = 0; s < dims;) {
    int64_t end = s + 1;
    while (end < dims && x[d + end - 1] == 0) ++end;
    const Rows rows = {V + s * stride, stride, padded(m.H)};
    if (kKeep == Keep::all && s > 0) hidden += stride;
    if (s == 0 && fresh) {
      read_units(m, units, hidden, rows, end, logits, 1);
    } else if (s > 0 || changed) {
      add_input(m, x, d + s - 1, units, hidden, rows, end - s, logits + s, 1, spare);
    } else {
      dots(hidden, rows.data, stride, end, rows.columns, logits, 1);
    }
    s = end;
  }
}

// What some dimensions change in the units of one sample, in turn: E ← E u, or E u + E where the mask is −1; or
// a ← a + scale·w.
struct Changes {
  static constexpr int64_t kMost = 64;
  int64_t count;
  const float* rows[kMost];  // u [H], padded, or w [H]
  int32_t masks[kMost];
  float scales[kMost];
};

// The changes from units j to units j + kVectors·kWidth, which are in registers meanwhile; of the last vector's row
// `valid` lanes are there.
template <int kVectors, bool kProduct>
PYAR_INLINE void change_columns(const Changes& changes, const float* from, float* to, int64_t j, int valid) {
  Vector units[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) units[v] = load(from + j + v * kWidth);
  for (int64_t c = 0; c < changes.count; ++c) {
    const float* row = changes.rows[c] + j;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vector value = valid == kWidth ? load(row + v * kWidth) : load_first(row + v * kWidth, valid);
      if constexpr (kProduct)
        units[v] = fused_multiply_add(units[v], value, (Vector)((IntVector)units[v] & changes.masks[c]));
      else
        units[v] = fused_multiply_add(broadcast(changes.scales[c]), value, units[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store(to + j + v * kWidth, units[v]);
}

template <bool kProduct>
inline void change_units(const Changes& changes, const float* from, float* to, int64_t H) {
  constexpr int kVectors = 8;
  const int64_t readable = kProduct ? padded(H) : H;
  int64_t j = 0;
  for (; j + kVectors * kWidth <= readable; j += kVectors * kWidth)
    change_columns<kVectors, kProduct>(changes, from, to, j, kWidth);
  for (; j < padded(H); j += kWidth) {
    const int64_t left = readable - j;
    change_columns<1, kProduct>(changes, from, to, j, static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth));
  }
}

// The units after the dimensions d0 … d1 − 1 of one sample.
//   x      [D]
//   from   the units before
inline void walk_units(const NadeParameters& m, const uint8_t* x, int64_t d0, int64_t d1, const Units& from,
                       const Units& to, float* spare) {
  const bool product = *from.bound < kAdditive;
  if (d1 - d0 <= Changes::kMost && (!product || m.factors != nullptr)) {
    Changes changes;
    changes.count = 0;
    float bound = *from.bound;
    for (int64_t d = d0; d < d1; ++d) {
      if (x[d] == 0) continue;
      const int64_t c = changes.count++;
      if (product) {
        changes.rows[c] = m.factors + d * row_stride(m.H);
        changes.masks[c] = m.largest[d] <= kSmall ? -1 : 0;
        bound += m.largest[d];
      } else {
        changes.rows[c] = input_row(m, d, x[d], &changes.scales[c]);
      }
    }
    if (!product || bound <= kRange) {
      *to.bound = bound;
      return (product ? change_units<true> : change_units<false>)(changes, from.row, to.row, m.H);
    }
  }
  copy_units(m, from, to);
  for (int64_t d = d0; d < d1; ++d)
    if (x[d] != 0) add_input(m, x, d, to, nullptr, spare);
}

constexpr int64_t kReplayAhead = 8;  // dimensions between asking for a row of W and adding it

// Walks dimensions d0 … d1 of one sample: the units, and h for every run. Returns the number of runs.
//   x       [D]
//   units   at d0, in the end at d1
//   same    [H], the hidden units at d0, to be copied instead of computed; or null
//   hidden  [runs, row_stride(H)]
//   run     [d1 − d0], the run of every dimension
//   spare   [row_stride(H)], work space
inline int64_t replay(const NadeParameters& m, const uint8_t* x, int64_t d0, int64_t d1, const Units& units,
                      const float* same, float* hidden, int32_t* run, float* spare) {
  const int64_t stride = row_stride(m.H);
  int64_t r = 0;
  if (same == nullptr) {
    read_units(m, units, hidden);
  } else if (same != hidden) {
    memcpy(hidden, same, padded(m.H) * sizeof(float));
  }
  for (int64_t d = d0; d < d1; ++d) {
    run[d - d0] = static_cast<int32_t>(r);
    if (d + kReplayAhead < d1) prefetch_input(m, d + kReplayAhead, x[d + kReplayAhead]);
    if (x[d] == 0) continue;
    if (d + 1 < d1) ++r;
    add_input(m, x, d, units, d + 1 < d1 ? hidden + r * stride : nullptr, spare);
  }
  return r + 1;
}

}  // namespace pyar::cpu::PYAR_LEVEL
