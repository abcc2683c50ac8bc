// The walks of models for any order, whose conditionals their Rules evaluate.
//
//   outputs_d = V_d h + b_d, d = o(s)      h from a = c + Σ_{t < s} what x_{o(t)} says
//
// Uria, Murray & Larochelle, "A Deep and Tractable Density Estimator", ICML 2014. Where all values are known, the steps
// of a walk hang together by the first layer's sum alone: a tile of steps goes through the layers together, and
// neighbouring steps have nearly the same active units. Samples take one step after the other, a tile of them together,
// with the same sums, bit for bit: a sample's log-probability is that of its values.
#pragma once

#include "cpu/any_order/layers.h"

namespace pyar::cpu::PYAR_LEVEL {

// Rules say, for their Model,
//
//   prefetch_inputs(m, d, x)            ask for what take() will read, where x is known
//   prefetch_outputs(m, d)              ask for what evaluate() and draw() will read
//   prefetch_column(m, d)               ask for both, where x is not known
//   take(m, d, x, a, h)                 a ← a + what value x of dimension d says; h = f(a) unless it is null
//   for_chunks(m, t, rows, visit)       visit(list, count) with rows of the tile whose conditionals go together
//   evaluate(q, t, h, list, count)      log p of the values of those rows, whose last units are h [rows, stride]
//   draw(q, t, h, list, count)          draws them; false if a conditional was not a distribution

// Steps begin … end−1, of those of all walks.
template <class Rules>
void forward_walks(const ForwardQuery<typename Rules::Model>& q, int64_t begin, int64_t end, float* scratch) {
  const auto& m = q.model;
  const WalkTile t(m, 1, scratch);
  int64_t r = -1, next = 0, number = begin;  // the sums are those of walk r at step `next`
  while (number < end) {
    const int64_t rows = end - number < kTileWalks ? end - number : kTileWalks;
    bool ready = false;  // the units of a row are there
    for (int64_t row = 0; row < rows; ++row, ++number) {
      if (r < 0 || number >= q.steps[r + 1]) {
        do ++r;
        while (number >= q.steps[r + 1]);
        start_sums(m, t.sums);
        next = 0;
      }
      const auto* x = q.walks.x + r * m.D;
      const int64_t* order = q.walks.order + r * m.D;
      const auto take = [&](float* h) {
        const int64_t soon = next + 2;
        if (soon < m.D) Rules::prefetch_inputs(m, order[soon], x[order[soon]]);
        Rules::take(m, order[next], x[order[next]], t.sums, h);
        ++next;
      };
      const int64_t step = q.walks.begin[r] + number - q.steps[r];
      while (next < step) take(nullptr);
      float* units = t.units + row * t.stride;
      if (!ready) read_sums(m, t.sums, units);
      t.walks[row] = r;
      t.steps[row] = step;
      t.dims[row] = order[step];
      Rules::prefetch_outputs(m, order[step]);
      const bool goes_on = number + 1 < q.steps[r + 1];
      ready = goes_on && row + 1 < rows;
      if (goes_on) take(ready ? units + t.stride : nullptr);
    }
    const float* h = forward_layers<true>(m, t, rows);
    Rules::for_chunks(m, t, rows, [&](const int32_t* list, int64_t count) { Rules::evaluate(q, t, h, list, count); });
  }
}

// Draws the steps begin … end−1 of walks first … first + n − 1.
template <class Rules>
bool sample_tile(const SampleQuery<typename Rules::Model>& q, const WalkTile& t, int64_t first, int64_t n) {
  const auto& m = q.model;
  int64_t rows = 0;  // walks that are under way
  for (int64_t r = first; r < first + n; ++r) {
    const int64_t* order = q.walks.order + r * m.D;
    const auto* given = q.walks.x + r * m.D;
    auto* x = q.x + r * m.D;
    float* sums = t.sums + (r - first) * t.stride;
    start_sums(m, sums);
    memset(x, 0, m.D * sizeof *x);
    for (int64_t s = 0; s < q.walks.begin[r]; ++s) {
      if (s + 2 < m.D) Rules::prefetch_inputs(m, order[s + 2], given[order[s + 2]]);
      Rules::take(m, order[s], given[order[s]], sums, nullptr);
      x[order[s]] = given[order[s]];
    }
    if (q.walks.begin[r] == q.walks.end[r]) continue;
    read_sums(m, sums, t.units + rows * t.stride);
    t.walks[rows] = r;
    t.steps[rows] = q.walks.begin[r];
    t.dims[rows++] = order[q.walks.begin[r]];
  }
  while (rows > 0) {
    for (int64_t row = 0; row < rows; ++row) Rules::prefetch_column(m, t.dims[row]);
    const float* h = forward_layers<false>(m, t, rows);
    bool good = true;
    Rules::for_chunks(m, t, rows, [&](const int32_t* list, int64_t count) {
      if (!Rules::draw(q, t, h, list, count)) good = false;
    });
    if (!good) return false;
    int64_t going = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t r = t.walks[row], step = t.steps[row] + 1;
      if (step == q.walks.end[r]) continue;
      const int64_t d = t.dims[row];
      Rules::take(m, d, q.x[r * m.D + d], t.sums + (r - first) * t.stride, t.units + going * t.stride);
      t.walks[going] = r;
      t.steps[going] = step;
      t.dims[going++] = q.walks.order[r * m.D + step];
    }
    rows = going;
  }
  return true;
}

// Draws walks begin … end−1; returns false if a conditional was not a distribution.
template <class Rules>
bool sample_walks(const SampleQuery<typename Rules::Model>& q, int64_t begin, int64_t end, float* scratch) {
  const WalkTile t(q.model, kTileWalks, scratch);
  const int64_t tiles = (end - begin + kTileWalks - 1) / kTileWalks;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = begin + (end - begin) * i / tiles, last = begin + (end - begin) * (i + 1) / tiles;
    if (!sample_tile<Rules>(q, t, first, last - first)) return false;
  }
  return true;
}

}  // namespace pyar::cpu::PYAR_LEVEL
