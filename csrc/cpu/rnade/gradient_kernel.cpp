// RNADE's gradients, for one instruction-set level: of a sub-batch of samples, in blocks of steps from the last to the
// first.
//
// With g the gradient of ln p(x), or g_d one for every conditional, and ∂y for that of what comes of it by y:
//   ∂outputs_d = g ∂ln p(x_d | x_<d)/∂outputs_d (mixture.h),   ∂V_d = Σ_samples ∂outputs_d h_dᵀ,   ∂b_d = Σ ∂outputs_d
//   ∂h_d = V_dᵀ ∂outputs_d,   e_d = f'(ρ_d a_d) ∂h_d,   ∂ρ_d = Σ_samples e_d · a_d,   ∂a_d = ρ_d e_d
//   ∂W_d = Σ_samples x_d Σ_{t>d} ∂a_t,   ∂c = Σ_samples Σ_t ∂a_t
//   ∂x_d = g ∂ln p(x_d | x_<d)/∂x_d + W_d · Σ_{t>d} ∂a_t
//
// The sums a are kept at the first step of every block and walk on from there in the same steps, to the same bits. A
// tile of samples leaves its part of a block's gradients in `partial`, and these are added up tile after tile: every
// sum over samples has one order, so that results depend on no thread count.
#include "cpu/rnade/step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// Rows of units, in whole groups of four; those behind H stay zero.
PYAR_INLINE int64_t unit_rows(const RnadeParameters& m) { return (m.H + 3) / 4 * 4; }

// What a tile adds to the gradients of one step: V [P, padded(H)], W [padded(H)], b [padded(P)], rho [16, the first].
struct Part {
  float *V, *W, *b, *rho;

  Part(const RnadeBackward& q, int64_t tile, int64_t step) {
    const RnadeParameters& m = q.model;
    V = q.partial + (tile * q.block + step) * rnade_part_floats(m.H, m.P);
    W = V + m.P * padded(m.H);
    b = W + padded(m.H);
    rho = b + padded(m.P);
  }
};

// The samples of a tile: whole vectors of sixteen, and what is left.
struct Samples {
  int64_t first, count, lanes;

  Samples(const RnadeBackward& q, int64_t tile) {
    const int64_t groups = (q.n + kLanes - 1) / kLanes;
    const int64_t begin = groups * tile / q.tiles, end = groups * (tile + 1) / q.tiles;
    first = begin * kLanes;
    count = (end * kLanes < q.n ? end * kLanes : q.n) - first;
    lanes = (end - begin) * kLanes;
  }
};

struct BackwardSpace {
  float* states;      // [block, unit_rows, lanes], a
  float* h;           // [unit_rows, lanes]
  float* transposed;  // [lanes, padded(H)], h
  float* outputs;     // [P, lanes], and their gradients
  float* weights;     // [C, lanes]
  float* values;      // [block, lanes], x
  float* upstream;    // [lanes], g
  float* slopes;      // [lanes], ∂x
  int64_t size;

  BackwardSpace(const RnadeBackward& q, float* base) {
    const RnadeParameters& m = q.model;
    int64_t used = 0;
    const auto floats = [&](int64_t count) {
      const int64_t at = used;
      used += padded(count);
      return base == nullptr ? nullptr : base + at;
    };
    states = floats(q.block * unit_rows(m) * kRnadeTile);
    h = floats(unit_rows(m) * kRnadeTile);
    transposed = floats(kRnadeTile * padded(m.H));
    outputs = floats(m.P * kRnadeTile);
    weights = floats(m.C * kRnadeTile);
    values = floats(q.block * kRnadeTile);
    upstream = floats(kRnadeTile);
    slopes = floats(kRnadeTile);
    size = used;
  }
};

// values = x_d. Lanes without a sample follow the first one, with a gradient of zero.
PYAR_INLINE void read_values(const RnadeBackward& q, const Samples& s, int64_t d, float* values) {
  const float* x = q.x + s.first * q.model.D + d;
  for (int64_t i = 0; i < s.lanes; ++i) values[i] = x[(i < s.count ? i : 0) * q.model.D];
}

// to = from + x W_d, in every lane.
//   from, to  [H, lanes]
PYAR_INLINE void add_row(const RnadeParameters& m, int64_t d, int64_t lanes, const float* values, const float* from,
                         float* to) {
  const float* w = m.W + d * m.H;
  for (int64_t j = 0; j < m.H; ++j) {
    const Vector row = broadcast(w[j]);
    for (int64_t i = 0; i < lanes; i += kWidth)
      store(to + j * lanes + i, fused_multiply_add(load(values + i), row, load(from + j * lanes + i)));
  }
}

// The slope of the activation where its value is h.
template <Activation kActivation>
PYAR_INLINE Vector slope_at(Vector h) {
  if constexpr (kActivation == Activation::sigmoid) return h * (1.0f - h);
  if constexpr (kActivation == Activation::tanh) return fused_multiply_add(-h, h, broadcast(1.0f));
  return select(h > 0.0f, broadcast(1.0f), select(h == h, Vector{}, h));
}

// to[s·to_stride + r] = from[r·from_stride + s] for r < 4, s < kWidth.
PYAR_INLINE void transpose_four(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__AVX512F__)
  __m512 row[4], pair[4], column[4];
  for (int r = 0; r < 4; ++r) row[r] = _mm512_loadu_ps(from + r * from_stride);
  for (int half = 0; half < 2; ++half) {
    pair[2 * half] = _mm512_unpacklo_ps(row[2 * half], row[2 * half + 1]);
    pair[2 * half + 1] = _mm512_unpackhi_ps(row[2 * half], row[2 * half + 1]);
  }
  for (int half = 0; half < 2; ++half) {
    const __m512d upper = _mm512_castps_pd(pair[half]), lower = _mm512_castps_pd(pair[2 + half]);
    column[2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
    column[2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
  }
  for (int s = 0; s < 4; ++s) {
    _mm_storeu_ps(to + s * to_stride, _mm512_castps512_ps128(column[s]));
    _mm_storeu_ps(to + (4 + s) * to_stride, _mm512_extractf32x4_ps(column[s], 1));
    _mm_storeu_ps(to + (8 + s) * to_stride, _mm512_extractf32x4_ps(column[s], 2));
    _mm_storeu_ps(to + (12 + s) * to_stride, _mm512_extractf32x4_ps(column[s], 3));
  }
#elif defined(__AVX2__)
  __m256 row[4], pair[4], column[4];
  for (int r = 0; r < 4; ++r) row[r] = _mm256_loadu_ps(from + r * from_stride);
  for (int half = 0; half < 2; ++half) {
    pair[2 * half] = _mm256_unpacklo_ps(row[2 * half], row[2 * half + 1]);
    pair[2 * half + 1] = _mm256_unpackhi_ps(row[2 * half], row[2 * half + 1]);
  }
  for (int half = 0; half < 2; ++half) {
    const __m256d upper = _mm256_castps_pd(pair[half]), lower = _mm256_castps_pd(pair[2 + half]);
    column[2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(upper, lower));
    column[2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(upper, lower));
  }
  for (int s = 0; s < 4; ++s) {
    _mm_storeu_ps(to + s * to_stride, _mm256_castps256_ps128(column[s]));
    _mm_storeu_ps(to + (4 + s) * to_stride, _mm256_extractf128_ps(column[s], 1));
  }
#else
  for (int s = 0; s < kWidth; ++s)
    for (int r = 0; r < 4; ++r) to[s * to_stride + r] = from[r * from_stride + s];
#endif
}

// Σ over the lanes of a row, in sixteen parts: folded, for horizontal_sums().
//   factors  [lanes], or null for ones
PYAR_INLINE Vector folded_row(const float* row, const float* factors, int64_t lanes) {
  Vector part[kParts] = {};
  for (int64_t i = 0; i < lanes; i += kLanes)
    for (int p = 0; p < kParts; ++p) {
      const Vector value = load(row + i + p * kWidth);
      part[p] =
          factors == nullptr ? part[p] + value : fused_multiply_add(load(factors + i + p * kWidth), value, part[p]);
    }
  return fold(part);
}

// part.V = Σ_samples ∂outputs hᵀ.
//   gradients   [P, lanes]
//   transposed  [lanes, padded(H)]
void weight_gradients(const RnadeParameters& m, const Samples& s, const float* gradients, const float* transposed,
                      float* V) {
  const int64_t stride = padded(m.H);
  for_vectors((m.H + kWidth - 1) / kWidth, [&](auto group, int64_t vector) __attribute__((always_inline)) {
    constexpr int N = decltype(group)::vectors;
    const int64_t j = vector * kWidth;
    for_row_tiles(m.P, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      multiply_accumulate<M, N>(sum, gradients + row * s.lanes, s.lanes, 1, transposed + j, s.count, stride);
      for (int i = 0; i < M; ++i)
        for (int v = 0; v < N; ++v) store(V + (row + i) * stride + j + v * kWidth, sum[i][v]);
    });
  });
}

// From ∂outputs to ∂a, which is added to `later`, and ∂ρ.
//   gradients    [P, lanes]
//   a, h, later  [unit_rows, lanes]
template <int N>
void unit_gradients(const RnadeParameters& m, int64_t d, int64_t lanes, int64_t column, const float* gradients,
                    const float* a, const float* h, float* later, float* rho_terms) {
  const float* V = m.V + d * m.P * m.H;
  const Vector rho = broadcast(m.rho[d]);
  Vector of_rho[N] = {};
  with_activation(m.activation, [&](auto f) __attribute__((always_inline)) {
    for_row_tiles(m.H, [&](auto tile, int64_t row) __attribute__((always_inline)) {
      constexpr int M = decltype(tile)::rows;
      Vector sum[M][N] = {};
      multiply_accumulate<M, N>(sum, V + row, 1, m.H, gradients + column, m.P, lanes);
      for (int i = 0; i < M; ++i)
        for (int v = 0; v < N; ++v) {
          const int64_t at = (row + i) * lanes + column + v * kWidth;
          const Vector e = slope_at<decltype(f)::value>(load(h + at)) * sum[i][v];
          of_rho[v] = fused_multiply_add(e, load(a + at), of_rho[v]);
          store(later + at, fused_multiply_add(rho, e, load(later + at)));
        }
    });
  });
  for (int v = 0; v < N; ++v) store(rho_terms + column + v * kWidth, of_rho[v]);
}

// One step of a tile.
void backward_step(const RnadeBackward& q, const BackwardSpace& space, const Samples& s, int64_t d, int64_t step,
                   int64_t tile, float* later) {
  const RnadeParameters& m = q.model;
  const int64_t lanes = s.lanes, rows = unit_rows(m);
  const float* a = space.states + step * rows * lanes;
  const float* values = space.values + step * lanes;
  const Part part(q, tile, step);

  with_activation(m.activation, [&](auto f) __attribute__((always_inline)) {
    const Vector rho = broadcast(m.rho[d]);
    for (int64_t at = 0; at < m.H * lanes; at += kWidth)
      store(space.h + at, activate(decltype(f)::value, rho * load(a + at)));
  });
  for_vectors(lanes / kWidth, [&](auto group, int64_t vector) __attribute__((always_inline)) {
    output_rows<decltype(group)::vectors>(m, d, lanes, space.h + vector * kWidth, space.outputs + vector * kWidth);
  });

  for (int64_t i = 0; i < lanes; ++i)
    space.upstream[i] = i >= s.count                    ? 0.0f
                        : q.grad_conditional != nullptr ? q.grad_conditional[(s.first + i) * m.D + d]
                                                        : q.grad_log_prob[s.first + i];
  with_family(m.family, [&](auto family) __attribute__((always_inline)) {
    for (int64_t i = 0; i < lanes; i += kWidth) {
      Vector slope;
      mixture_log_density<decltype(family)::value, true>(space.outputs + i, lanes, m.C, load(values + i),
                                                         broadcast(m.min_scale), space.weights + i,
                                                         load(space.upstream + i), &slope);
      store(space.slopes + i, slope);
    }
  });

  for (int64_t j = 0; j < rows; j += 4)
    for (int64_t i = 0; i < lanes; i += kWidth)
      transpose_four(space.h + j * lanes + i, lanes, space.transposed + i * padded(m.H) + j, padded(m.H));
  weight_gradients(m, s, space.outputs, space.transposed, part.V);
  for (int64_t k = 0; k < m.P; k += 4) {
    Vector folded[4];
    for (int64_t r = 0; r < 4; ++r)
      folded[r] = k + r < m.P ? folded_row(space.outputs + (k + r) * lanes, nullptr, lanes) : Vector{};
    horizontal_sums(folded, part.b + k);
  }

  // By x_d and W_d, while `later` holds the steps behind.
  const float* w = m.W + d * m.H;
  for (int64_t j = 0; j < rows; j += 4) {
    Vector folded[4];
    for (int64_t r = 0; r < 4; ++r) folded[r] = folded_row(later + (j + r) * lanes, values, lanes);
    horizontal_sums(folded, part.W + j);
  }
  if (q.grad_x != nullptr) {
    for (int64_t i = 0; i < lanes; i += kWidth) {
      Vector part[4] = {load(space.slopes + i)};
      for (int64_t j = 0; j < m.H; ++j)
        part[j % 4] = fused_multiply_add(broadcast(w[j]), load(later + j * lanes + i), part[j % 4]);
      store(space.slopes + i, (part[0] + part[1]) + (part[2] + part[3]));
    }
    for (int64_t i = 0; i < s.count; ++i) q.grad_x[(s.first + i) * m.D + d] = space.slopes[i];
  }

  float* const rho_terms = space.upstream;  // no longer needed
  for_vectors(lanes / kWidth, [&](auto group, int64_t vector) __attribute__((always_inline)) {
    unit_gradients<decltype(group)::vectors>(m, d, lanes, vector * kWidth, space.outputs, a, space.h, later, rho_terms);
  });
  *part.rho = horizontal_sum(folded_row(rho_terms, nullptr, lanes));
}

float* tile_sums(const RnadeBackward& q, float* base, int64_t tile) {
  return base + tile * unit_rows(q.model) * kRnadeTile;
}

}  // namespace

int64_t rnade_tile_floats(const RnadeParameters& model) { return unit_rows(model) * kRnadeTile; }

// checkpoints [blocks, tiles], a at the first step of every block, and later = 0.
void rnade_checkpoints(const RnadeBackward& q, int64_t tile) {
  const RnadeParameters& m = q.model;
  const Samples s(q, tile);
  memset(tile_sums(q, q.later, tile), 0, rnade_tile_floats(m) * sizeof(float));
  const auto checkpoint = [&](int64_t block) { return tile_sums(q, q.checkpoints, block * q.tiles + tile); };
  for (int64_t j = 0; j < m.H; ++j)
    for (int64_t i = 0; i < s.lanes; i += kWidth) store(checkpoint(0) + j * s.lanes + i, broadcast(m.c[j]));
  alignas(64) float values[kRnadeTile];
  for (int64_t block = 0; (block + 1) * q.block < m.D; ++block) {
    float* const next = checkpoint(block + 1);
    for (int64_t step = 0; step < q.block; ++step) {
      read_values(q, s, block * q.block + step, values);
      add_row(m, block * q.block + step, s.lanes, values, step == 0 ? checkpoint(block) : next, next);
    }
  }
}

int64_t rnade_backward_scratch(const RnadeBackward& q) { return BackwardSpace(q, nullptr).size; }

// The block of steps from d0 for one tile: its part of their gradients, ∂x, and `later` with their ∂a.
void rnade_backward_tile(const RnadeBackward& q, int64_t d0, int64_t tile, float* scratch) {
  const RnadeParameters& m = q.model;
  const BackwardSpace space(q, scratch);
  const Samples s(q, tile);
  const int64_t steps = d0 + q.block < m.D ? q.block : m.D - d0, rows = unit_rows(m), size = rows * s.lanes;
  memset(space.h + m.H * s.lanes, 0, (rows - m.H) * s.lanes * sizeof(float));
  memset(space.transposed, 0, kRnadeTile * padded(m.H) * sizeof(float));
  memcpy(space.states, tile_sums(q, q.checkpoints, d0 / q.block * q.tiles + tile), m.H * s.lanes * sizeof(float));
  for (int64_t step = 0; step < steps; ++step) {
    read_values(q, s, d0 + step, space.values + step * s.lanes);
    if (step + 1 < steps)
      add_row(m, d0 + step, s.lanes, space.values + step * s.lanes, space.states + step * size,
              space.states + (step + 1) * size);
  }
  float* const later = tile_sums(q, q.later, tile);
  for (int64_t step = steps - 1; step >= 0; --step) backward_step(q, space, s, d0 + step, step, tile, later);
}

// Adds up the parts of steps d0 + [begin, end) of the block, tile after tile.
void rnade_backward_sums(const RnadeBackward& q, int64_t d0, int64_t begin, int64_t end) {
  const RnadeParameters& m = q.model;
  const auto add = [&](const float* part, int64_t count, float* to) __attribute__((always_inline)) {
    for (int64_t j = 0; j < count; j += kWidth) {
      const int left = static_cast<int>(count - j < kWidth ? count - j : kWidth);
      Vector sum = q.first ? Vector{} : load_first(to + j, left);
      for (int64_t tile = 0; tile < q.tiles; ++tile)
        sum += load_first(part + tile * q.block * rnade_part_floats(m.H, m.P) + j, left);
      store_first(to + j, sum, left);
    }
  };
  for (int64_t step = begin; step < end; ++step) {
    const Part part(q, 0, step);
    const int64_t d = d0 + step;
    for (int64_t k = 0; k < m.P; ++k) add(part.V + k * padded(m.H), m.H, q.grad_V + (d * m.P + k) * m.H);
    add(part.W, m.H, q.grad_W + d * m.H);
    add(part.b, m.P, q.grad_b + d * m.P);
    add(part.rho, 1, q.grad_rho + d);
  }
}

// ∂c, once all blocks are done.
void rnade_backward_end(const RnadeBackward& q) {
  const RnadeParameters& m = q.model;
  for (int64_t j = 0; j < m.H; ++j) {
    float sum = q.first ? 0.0f : q.grad_c[j];
    for (int64_t tile = 0; tile < q.tiles; ++tile) {
      const int64_t lanes = Samples(q, tile).lanes;
      sum += horizontal_sum(folded_row(tile_sums(q, q.later, tile) + j * lanes, nullptr, lanes));
    }
    q.grad_c[j] = sum;
  }
}

}  // namespace pyar::cpu::PYAR_LEVEL
