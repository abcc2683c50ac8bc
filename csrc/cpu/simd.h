// Vectors of float for one instruction-set level. A kernel source is compiled once per level (see setup.py), each time
// with PYAR_LEVEL set to the level's name, and everything here lives in the namespace pyar::cpu::<level>.
//
// Kernel sources include only this, csrc/common and C headers, never torch or the C++ library: a template instantiated
// in the AVX-512 object could be the copy that the linker keeps for every level.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef PYAR_LEVEL
#error "PYAR_LEVEL must name the instruction-set level: baseline, avx2 or avx512"
#endif

#define PYAR_INLINE inline __attribute__((always_inline))

namespace pyar::cpu::PYAR_LEVEL {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVector __attribute__((vector_size(4 * kWidth)));
typedef uint32_t UnsignedVector __attribute__((vector_size(4 * kWidth)));  // for arithmetic that may wrap around

// Minus zero, not plus: value − 0 is value for every value, so the compiler drops it and broadcasts straight from
// memory.
PYAR_INLINE Vector broadcast(float value) { return value - Vector{}; }

PYAR_INLINE Vector load(const float* p) {
  Vector v;
  memcpy(&v, p, sizeof v);
  return v;
}

PYAR_INLINE void store(float* p, Vector v) { memcpy(p, &v, sizeof v); }

// v, loaded once: otherwise the compiler reads memory again in every instruction that uses it.
PYAR_INLINE Vector in_register(Vector v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__ARM_NEON)
  asm("" : "+w"(v));
#endif
  return v;
}

// The first count (0 … kWidth) floats at p, zeros behind them; nothing past them is read.
PYAR_INLINE Vector load_first(const float* p, int count) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), p);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Vector)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
#else
  Vector v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

// Writes the first count (0 … kWidth) floats of v.
PYAR_INLINE void store_first(float* p, Vector v, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1u), (__m512)v);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane), (__m256)v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// a·b + c, rounded once where the level has fused multiply-add.
PYAR_INLINE Vector fused_multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

PYAR_INLINE Vector select(IntVector mask, Vector a, Vector b) {
  return (Vector)((mask & (IntVector)a) | (~mask & (IntVector)b));
}

PYAR_INLINE Vector maximum(Vector a, Vector b) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}

PYAR_INLINE Vector minimum(Vector a, Vector b) {
#if defined(__AVX512F__)
  return (Vector)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vector)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return select(a < b, a, b);
#endif
}

PYAR_INLINE Vector absolute(Vector a) { return (Vector)((IntVector)a & 0x7fffffff); }

// A sum over lanes has sixteen parts on every level, in kParts vectors, and they are added up in one order, halves onto
// halves: so levels with fused multiply-add give the same bits.
constexpr int kLanes = 16;
constexpr int kParts = kLanes / kWidth;

PYAR_INLINE Vector fold(const Vector* part) {
  if constexpr (kParts == 1) return part[0];
  if constexpr (kParts == 2) return part[0] + part[1];
  if constexpr (kParts == 4) return (part[0] + part[2]) + (part[1] + part[3]);
}

// How many of the lanes of part p of sixteen are among the first `count`.
PYAR_INLINE int lanes_of_part(int64_t count, int p) {
  const int64_t left = count - p * kWidth;
  return static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
}

// The sum of the lanes of one vector.
PYAR_INLINE float horizontal_sum(Vector v) {
#if defined(__AVX512F__)
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                    _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1)));
#elif defined(__AVX2__)
  const __m256 half = (__m256)v;
#endif
#if defined(__AVX2__) || defined(__AVX512F__)
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// The sum of sixteen lanes.
PYAR_INLINE float sum_of_lanes(const Vector (&part)[kParts]) { return horizontal_sum(fold(part)); }

// The sums of the lanes of four vectors, bit for bit those of horizontal_sum(): out[i] for v[i].
PYAR_INLINE void horizontal_sums(const Vector* v, float* out) {
#if defined(__AVX512F__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  __m512 quarter = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  quarter = _mm512_add_ps(quarter, _mm512_permute_ps(quarter, 0x4e));
  quarter = _mm512_add_ps(quarter, _mm512_permute_ps(quarter, 0xb1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps((__mmask16)0x1111, quarter)));
#elif defined(__AVX2__)
  const __m256 a = (__m256)v[0], b = (__m256)v[1], c = (__m256)v[2], d = (__m256)v[3];
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
  __m256 pairs = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  pairs = _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0xb1));  // a a c c b b d d
  _mm_storeu_ps(out, _mm_blend_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1), 0xa));
#else
  for (int i = 0; i < 4; ++i) out[i] = horizontal_sum(v[i]);
#endif
}

// e^x for x ≤ 88.37, relative error below 2e-7; 0 for x < −87.3; NaN stays NaN.
// x = n·ln 2 + r with |r| ≤ ln 2 / 2: n by adding a magic number, ln 2 in two parts, e^r by a polynomial of degree 6.
PYAR_INLINE Vector exponential(Vector x) {
  const Vector magic = broadcast(12582912.0f);  // 1.5·2²³: the sum's low bits hold round(x / ln 2)
  const Vector shifted = fused_multiply_add(x, broadcast(1.44269504f), magic);
  const Vector n = shifted - magic;
  Vector r = fused_multiply_add(n, broadcast(-0.693359375f), x);
  r = fused_multiply_add(n, broadcast(2.12194440e-4f), r);
  Vector p = broadcast(1.9875691500e-4f);
  p = fused_multiply_add(p, r, broadcast(1.3981999507e-3f));
  p = fused_multiply_add(p, r, broadcast(8.3334519073e-3f));
  p = fused_multiply_add(p, r, broadcast(4.1665795894e-2f));
  p = fused_multiply_add(p, r, broadcast(1.6666665459e-1f));
  p = fused_multiply_add(p, r, broadcast(5.0000001201e-1f));
  p = fused_multiply_add(p * r, r, r + 1.0f);
  const UnsignedVector exponent = ((UnsignedVector)shifted - (UnsignedVector)magic) << 23;
  const Vector scaled = (Vector)((UnsignedVector)p + exponent);
  // x < −87.3 would borrow from the sign bit; a comparison with NaN is false, so NaN passes through p.
  return select(x < -87.3f, Vector{}, scaled);
}

// e^r − 1 for |r| ≤ ln 2 / 2.
PYAR_INLINE Vector small_exponential_minus_one(Vector r) {
  Vector p = broadcast(1.9875691500e-4f);
  p = fused_multiply_add(p, r, broadcast(1.3981999507e-3f));
  p = fused_multiply_add(p, r, broadcast(8.3334519073e-3f));
  p = fused_multiply_add(p, r, broadcast(4.1665795894e-2f));
  p = fused_multiply_add(p, r, broadcast(1.6666665459e-1f));
  p = fused_multiply_add(p, r, broadcast(5.0000001201e-1f));
  return fused_multiply_add(p * r, r, r);
}

// For x ≤ 88: 2ⁿ and t = e^r − 1 with e^x = 2ⁿ(1 + t), x = n·ln 2 + r, |r| ≤ ln 2 / 2. Below −87 as at −87; NaN stays
// NaN.
PYAR_INLINE void split_exponential(Vector x, Vector* power, Vector* t) {
  x = maximum(broadcast(-87.0f), x);
  const Vector magic = broadcast(12582912.0f);  // 1.5·2²³: the sum's low bits hold round(x / ln 2)
  const Vector shifted = fused_multiply_add(x, broadcast(1.44269504f), magic);
  const Vector n = shifted - magic;
  Vector r = fused_multiply_add(n, broadcast(-0.693359375f), x);
  r = fused_multiply_add(n, broadcast(2.12194440e-4f), r);
  *t = small_exponential_minus_one(r);
  *power = (Vector)(((UnsignedVector)shifted << 23) + 0x3f800000u);
}

// ln(1 + f) + n·ln 2 for f in [√½ − 1, √2 − 1] and n = 0, ±1, …; the polynomial is Cephes' logf.
PYAR_INLINE Vector logarithm_from_parts(Vector f, Vector n) {
  Vector p = broadcast(7.0376836292e-2f);
  p = fused_multiply_add(p, f, broadcast(-1.1514610310e-1f));
  p = fused_multiply_add(p, f, broadcast(1.1676998740e-1f));
  p = fused_multiply_add(p, f, broadcast(-1.2420140846e-1f));
  p = fused_multiply_add(p, f, broadcast(1.4249322787e-1f));
  p = fused_multiply_add(p, f, broadcast(-1.6668057665e-1f));
  p = fused_multiply_add(p, f, broadcast(2.0000714765e-1f));
  p = fused_multiply_add(p, f, broadcast(-2.4999993993e-1f));
  p = fused_multiply_add(p, f, broadcast(3.3333331174e-1f));
  const Vector square = f * f;
  Vector y = p * f * square;
  y = fused_multiply_add(n, broadcast(-2.12194440e-4f), y);
  y = fused_multiply_add(square, broadcast(-0.5f), y);
  return fused_multiply_add(n, broadcast(0.693359375f), f + y);
}

// ln x for positive normal x; NaN stays NaN.
PYAR_INLINE Vector logarithm(Vector x) {
  const IntVector bits = (IntVector)((UnsignedVector)x - 0x3f3504f3u);  // so that the mantissa ends up in [√½, √2)
  const Vector mantissa = (Vector)((bits & 0x007fffff) + 0x3f3504f3);
  const Vector n = __builtin_convertvector(bits >> 23, Vector);
  return select(x == x, logarithm_from_parts(mantissa - 1.0f, n), x);
}

// ln(1 + x) for x in [0, 1], with full relative accuracy near zero; NaN stays NaN.
PYAR_INLINE Vector logarithm_of_one_plus(Vector x) {
  const IntVector large = x > 0.41421356f;
  return logarithm_from_parts(select(large, 0.5f * (x - 1.0f), x), select(large, broadcast(1.0f), Vector{}));
}

// σ(x) = 1 / (1 + e^−x), absolute error below 1e-7, for x < 0 also relative to σ(x) down to σ(−88); NaN stays NaN.
// Clamping keeps e^−x finite and normal, so that nothing has to be selected afterwards; otherwise as exponential().
PYAR_INLINE Vector sigmoid(Vector x) {
  const Vector magic = broadcast(12582912.0f);
  const Vector y = minimum(broadcast(87.0f), maximum(broadcast(-87.0f), -x));  // of a NaN, both return the NaN
  const Vector shifted = fused_multiply_add(y, broadcast(1.44269504f), magic);
  const Vector n = shifted - magic;
  const Vector r = fused_multiply_add(n, broadcast(-0.693147181f), y);  // ln 2 in one part: off by 2e-9·n
  Vector p = broadcast(1.9875691500e-4f);
  p = fused_multiply_add(p, r, broadcast(1.3981999507e-3f));
  p = fused_multiply_add(p, r, broadcast(8.3334519073e-3f));
  p = fused_multiply_add(p, r, broadcast(4.1665795894e-2f));
  p = fused_multiply_add(p, r, broadcast(1.6666665459e-1f));
  p = fused_multiply_add(p, r, broadcast(5.0000001201e-1f));
  p = fused_multiply_add(p, r, broadcast(1.0f));
  p = fused_multiply_add(p, r, broadcast(1.0f));
  // The shift drops the bits of the magic number above n.
  const Vector e = (Vector)((UnsignedVector)p + ((UnsignedVector)shifted << 23));
  return 1.0f / (1.0f + e);
}

// tanh(x) = sign(x)·(1 − e^−2|x|) / (1 + e^−2|x|); near zero, where that cancels, an odd polynomial (Cephes).
PYAR_INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector magnitude = absolute(x);
  const Vector e = exponential(-2.0f * magnitude);
  const Vector large = (1.0f - e) / (1.0f + e);
  const Vector square = x * x;
  Vector p = broadcast(-5.70498872745e-3f);
  p = fused_multiply_add(p, square, broadcast(2.06390887954e-2f));
  p = fused_multiply_add(p, square, broadcast(-5.37397155531e-2f));
  p = fused_multiply_add(p, square, broadcast(1.33314422036e-1f));
  p = fused_multiply_add(p, square, broadcast(-3.33332819422e-1f));
  const Vector small = fused_multiply_add(p * square, magnitude, magnitude);
  const Vector value = select(magnitude < 0.625f, small, large);
  return (Vector)((IntVector)value | ((IntVector)x & (int32_t)0x80000000));
}

}  // namespace pyar::cpu::PYAR_LEVEL
