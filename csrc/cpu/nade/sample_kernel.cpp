// NADE's sampling, for one instruction-set level: dimension after dimension, the logits from the states drawn so far,
// then a state from the logits and the uniform of (seed, sample, dimension).
//
// A sample's numbers depend on that sample alone, so that its bits are those of every batch size and thread count.
#include "common/draw.h"
#include "common/philox.h"
#include "cpu/nade/step.h"

namespace pyar::cpu::PYAR_LEVEL {
namespace {

// Dimensions that a lone sample looks ahead, at least, if each has one output row: as fast as one alone. And the floats
// of all rows looked at, at most.
constexpr int64_t kFewestAhead = 4;
constexpr int64_t kAheadFloats = 40960;

constexpr int64_t kPhiloxLanes = 16;
constexpr int64_t kPhiloxDims = 4 * kPhiloxLanes;

struct SampleSpace {
  float *units, *bounds, *hidden, *features[2], *logits, *weights, *packed, *terms, *uniforms, *ahead, *spare;
  uint32_t* words;
  int32_t* states;
  uint8_t* own;  // a lone sample's states: the members of a team have one each
  const float** in;
  float** out;
  int64_t size;

  SampleSpace(const NadeParameters& m, float* base) {
    Cutter cut{base, 0};
    int64_t widest = 0;
    for (int64_t l = 0; l < m.num_layers; ++l) widest = m.layers[l].outputs > widest ? m.layers[l].outputs : widest;
    units = cut.floats(kTile * row_stride(m.H));
    bounds = cut.floats(kTile);
    spare = cut.floats(row_stride(m.H));
    ahead = cut.floats(kFusedRows * kTile);
    hidden = cut.floats(kTile * row_stride(m.H));
    for (float*& buffer : features) buffer = cut.floats(kTile * row_stride(widest));
    logits = cut.floats(m.P * kTile);
    weights = cut.floats(m.P * kTile);
    packed = cut.floats(packed_floats(m));
    terms = cut.floats(kTile);
    uniforms = cut.floats(m.D + kPhiloxDims);
    words = cut.array<uint32_t>(4 * kTile);
    states = cut.array<int32_t>(kTile);
    own = cut.array<uint8_t>(m.D);
    in = cut.array<const float*>(kTile);
    out = cut.array<float*>(kTile);
    size = cut.used;
  }
};

// The words of philox_block(seed, first + i, dimension) for i < n: word w of i goes to words[w·kTile + i].
void philox_lanes(uint64_t seed, uint64_t first, int64_t n, uint32_t dimension, uint32_t* words) {
  for (int64_t start = 0; start < n; start += kPhiloxLanes) {
    PhiloxBlock block[kPhiloxLanes];
    for (int i = 0; i < kPhiloxLanes; ++i)
      block[i] = philox_block(seed, first + static_cast<uint64_t>(start + i), dimension);
    for (int i = 0; i < kPhiloxLanes; ++i)
      for (int w = 0; w < 4; ++w) words[w * kTile + start + i] = block[i].word[w];
  }
}

// uniforms[d] = the uniform of (seed, sample, d) for begin ≤ d < end, and of some dimensions around.
void philox_dimensions(uint64_t seed, uint64_t sample, int64_t begin, int64_t end, float* uniforms) {
  for (int64_t d = begin / 4 * 4; d < end; d += kPhiloxDims) {
    PhiloxBlock block[kPhiloxLanes];
    for (int i = 0; i < kPhiloxLanes; ++i) block[i] = philox_block(seed, sample, static_cast<uint32_t>(d + 4 * i));
    for (int i = 0; i < kPhiloxLanes; ++i)
      for (int w = 0; w < 4; ++w) uniforms[d + 4 * i + w] = uniform_from_word(block[i].word[w]);
  }
}

// The features of one sample: what the added layers make of its hidden units, or these themselves.
const float* lone_features(const NadeParameters& m, const SampleSpace& s) {
  const float* features = s.hidden;
  for (int64_t l = 0; l < m.num_layers; ++l) {
    float* target = s.features[l % 2];
    layer_forward(m.layers[l], &features, &target, 1, s.packed);
    features = target;
  }
  return features;
}

// Output rows that are worth multiplying behind a change, of dimension d and some ahead, whose logits hold as long as
// state 0 is drawn: while a change is made to the units, their h are in registers, and a few rows cost little.
PYAR_INLINE int64_t rows_ahead(int64_t changes, int64_t d, int64_t D) {
  const int64_t wanted = 3 * changes > d ? 2 : kFusedRows;  // as many as are likely to be used
  return wanted < D - d ? wanted : D - d;
}

// The logits of a tile's samples where a dimension has one output row: of this dimension and some ahead.
class Lookahead {
 public:
  Lookahead(const NadeParameters& m, const SampleSpace& s, int64_t n) : m_(m), s_(s), n_(n) {
    for (int64_t i = 0; i < n; ++i) {
      known_[i] = -1;
      kept_[i] = true;
      changes_[i] = 0;
    }
  }

  // [n], of dimension d without its bias.
  float* logits(int64_t d) const { return s_.ahead + d % kFusedRows * kTile; }

  // Makes the samples' logits of dimension d. Where the states before are `fresh`, they are in the units already.
  //   x      [n, D]
  //   units  the units of sample i
  template <class UnitsOf>
  void advance(const uint8_t* x, int64_t d, bool fresh, const UnitsOf& units) {
    // First who needs what, without branches that nobody can predict.
    int64_t changed[kTile], asking[kTile], num_changed = 0, num_asking = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t change = fresh ? 0 : x[i * m_.D + d - 1] != 0 ? 1 : 0;
      changed[num_changed] = asking[num_asking] = i;
      num_changed += change;
      num_asking += (1 - change) & (d > known_[i] ? 1 : 0);
    }
    for (int64_t k = 0; k < num_changed; ++k) {
      const int64_t i = changed[k], rows = rows_ahead(++changes_[i], d, m_.D);
      float out[kFusedRows];
      add_input(m_, x + i * m_.D, d - 1, units(i), nullptr, rows_of(d, rows), rows, out, 1, s_.spare);
      kept_[i] = false;
      keep(i, d, rows, out);
    }
    for (int64_t k = 0; k < num_asking; ++k) {
      const int64_t i = asking[k], rows = rows_ahead(changes_[i], d, m_.D);
      float* hidden = s_.hidden + i * row_stride(m_.H);
      float out[kFusedRows];
      const Rows V = rows_of(d, rows);
      if (kept_[i]) {
        dots(hidden, V.data, V.stride, rows, V.columns, out, 1);
      } else {
        read_units(m_, units(i), hidden, V, rows, out, 1);
        kept_[i] = true;
      }
      keep(i, d, rows, out);
    }
  }

 private:
  Rows rows_of(int64_t d, int64_t rows) const { return output_rows(m_, d, rows, 1, nullptr); }
  void keep(int64_t i, int64_t d, int64_t rows, const float* out) {
    for (int64_t r = 0; r < rows; ++r) logits(d + r)[i] = out[r];
    known_[i] = d + rows - 1;
  }

  const NadeParameters& m_;
  const SampleSpace& s_;
  int64_t n_;
  int64_t known_[kTile];  // the last dimension whose logit is there
  int64_t changes_[kTile];
  bool kept_[kTile];  // whether `hidden` is that of the units
};

// x_id ~ p(x_d | x_i,<d) for d = num_given … D − 1 and log_prob_i = Σ_d log p(x_id | x_i,<d), for samples first + [0,
// n). Returns false if a conditional was not a distribution.
bool sample_tile(const NadeSample& q, int64_t first, int64_t n, float* scratch) {
  const NadeParameters& m = q.model;
  const SampleSpace s(m, scratch);
  const int64_t H = row_stride(m.H), P = m.P, D = m.D, G = q.num_given;
  const bool binary = P == 1 && m.num_layers == 0;
  double total[kTile] = {};
  memset(s.logits, 0, P * kTile * sizeof(float));
  memset(s.ahead, 0, kFusedRows * kTile * sizeof(float));
  memset(s.words, 0, 4 * kTile * sizeof(uint32_t));
  const auto units = [&](int64_t i) { return Units{s.units + i * H, s.bounds + i}; };
  start_units(m, units(0));
  for (int64_t i = 1; i < n; ++i) copy_units(m, units(0), units(i));
  for (int64_t i = 0; i < n; ++i) {
    uint8_t* x = q.x + (first + i) * D;
    if (G > 0) memcpy(x, q.given + (first + i) * G, G);
    for (int64_t d = 0; d < G; ++d)
      if (x[d] != 0) add_input(m, x, d, units(i), nullptr, s.spare);
    read_units(m, units(i), s.hidden + i * H);
  }
  Lookahead lookahead(m, s, n);
  const Vector temperature = broadcast(q.temperature);
  for (int64_t d = G; d < D; ++d) {
    if (d == G || d % 4 == 0) {
      philox_lanes(q.seed, q.first_index + static_cast<uint64_t>(first), n, static_cast<uint32_t>(d), s.words);
    }
    const float* features = s.hidden;
    int64_t stride = H;
    for (int64_t l = 0; l < m.num_layers; ++l) {
      const int64_t next = row_stride(m.layers[l].outputs);
      float* target = s.features[l % 2];
      int64_t rows = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (d > G && q.x[(first + i) * D + d - 1] == 0) continue;  // nothing has changed
        s.in[rows] = features + i * stride;
        s.out[rows] = target + i * next;
        ++rows;
      }
      layer_forward(m.layers[l], s.in, s.out, rows, s.packed);
      features = target;
      stride = next;
    }
    float* logits = s.logits;
    if (binary) {
      lookahead.advance(q.x + first * D, d, d == G, units);
      logits = lookahead.logits(d);
    } else if (P == 1) {
      dots(m.V + d * m.F, features, stride, n, m.F, s.logits, 1);
    } else {
      for (int64_t i = 0; i < n; ++i) s.in[i] = features + i * stride;
      outputs_ahead(m, d, s.in, n, nullptr, s.packed, s.logits, kTile);
    }
    for (int64_t i = 0; i < n; i += kWidth) {
      add_bias(logits + i, kTile, m.b + d * P, P);
      for (int64_t k = 0; k < P; ++k) store(logits + k * kTile + i, load(logits + k * kTile + i) / temperature);
      Vector term;
      store_int(s.states + i, draw_states(logits + i, s.weights + i, kTile, P,
                                          uniforms_from_words(s.words + (d & 3) * kTile + i), &term));
      store(s.terms + i, term);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (s.states[i] == kNoState) return false;
      if (!binary) prefetch_input(m, d, s.states[i]);
      total[i] += static_cast<double>(s.terms[i]);
      q.x[(first + i) * D + d] = static_cast<uint8_t>(s.states[i]);
    }
    if (d + 1 == D || binary) continue;
    for (int64_t i = 0; i < n; ++i)
      if (s.states[i] != 0) add_input(m, q.x + (first + i) * D, d, units(i), s.hidden + i * H, s.spare);
  }
  for (int64_t i = 0; i < n; ++i) q.log_prob[first + i] = static_cast<float>(total[i]);
  return true;
}

}  // namespace

int64_t nade_sample_scratch(const NadeParameters& model) { return SampleSpace(model, nullptr).size; }

// sample_tile() for one sample. It would wait for every dimension in turn, so the logits of some dimensions ahead are
// computed from the hidden units as they are. They hold as long as state 0 is drawn; what is behind another state is
// thrown away. After that few are looked at, and twice as many each time that all of them were zeros.
//   logits  [2, P, kMostAhead], used in turn; the members of a team compute some rows each and do the rest alike
bool nade_sample_alone(const NadeSample& q, int64_t index, float* logits, float* scratch, Team* team, int rank) {
  const NadeParameters& m = q.model;
  const SampleSpace s(m, scratch);
  const int64_t P = m.P, F = m.F, D = m.D, G = q.num_given;
  const int64_t size = team != nullptr ? team->size : 1;
  int64_t first = rank * P / size, last = (rank + 1) * P / size;
  const int64_t fitting = kAheadFloats / (P * F);
  const int64_t most = fitting < 1 ? 1 : fitting < kMostAhead ? fitting : kMostAhead;
  const int64_t fewest = P > 1 ? 1 : most < kFewestAhead ? most : kFewestAhead;
  const bool binary = P == 1 && m.num_layers == 0;
  const Units units = {s.units, s.bounds};
  start_units(m, units);
  for (int64_t d = 0; d < G; ++d) {
    s.own[d] = q.given[index * G + d];
    if (s.own[d] != 0) add_input(m, s.own, d, units, nullptr, s.spare);
  }
  read_units(m, units, s.hidden);
  for (int64_t k = first; k < last; ++k)  // the lanes without a dimension are numbers too
    for (int64_t turn = 0; turn < 2; ++turn)
      memset(logits + (turn * P + k) * kMostAhead, 0, kMostAhead * sizeof(float));
  philox_dimensions(q.seed, q.first_index + static_cast<uint64_t>(index), G, D, s.uniforms);
  const float* features = lone_features(m, s);
  double total = 0.0;
  bool changed = false;  // by state d − 1, which is not in the units yet
  int64_t ahead = fewest, meetings = 0;
  for (int64_t d = G; d < D;) {
    const int64_t n = ahead < D - d ? ahead : D - d;
    float* l = logits + meetings % 2 * P * kMostAhead;
    if (changed && binary) {
      add_input(m, s.own, d - 1, units, s.hidden, output_rows(m, d, n, 1, nullptr), n, l, 1, s.spare);
    } else if (changed) {
      add_input(m, s.own, d - 1, units, s.hidden, s.spare);
      features = lone_features(m, s);
    }
    if (P == 1) {
      if (!changed || !binary) dots(features, m.V + d * F, F, n, F, l, 1);
    } else {
      for (int64_t i = 0; i < n; ++i)
        dots<true>(features, m.V + ((d + i) * P + first) * F, F, last - first, F, l + first * kMostAhead + i,
                   kMostAhead, P * F);
    }
    changed = false;
    for (int64_t k = first; k < last; ++k) {
      float* row = l + k * kMostAhead;
      for (int64_t i = 0; i < n; ++i) row[i] = (row[i] + m.b[(d + i) * P + k]) / q.temperature;
    }
    const Meeting meeting = meet(team, &meetings);
    if (meeting == Meeting::over) return true;
    if (meeting == Meeting::alone) {
      // Everything but the others' logits is here.
      team = nullptr, rank = 0, first = 0, last = P;
      logits = s.logits;
      memset(logits, 0, 2 * P * kMostAhead * sizeof(float));
      continue;
    }
    for (int64_t i = 0; i < n; i += kWidth) {
      Vector term;
      store_int(s.states + i, draw_states(l + i, s.weights + i, kMostAhead, P, load(s.uniforms + d + i), &term));
      store(s.terms + i, term);
    }
    int state = 0;
    for (int64_t i = 0; i < n && state == 0; ++i, ++d) {
      state = s.states[i];
      if (state == kNoState) return false;
      total += static_cast<double>(s.terms[i]);
      s.own[d] = static_cast<uint8_t>(state);
    }
    changed = state != 0;
    ahead = changed ? fewest : 2 * ahead < most ? 2 * ahead : most;
  }
  if (rank == 0) {
    memcpy(q.x + index * D, s.own, D);
    q.log_prob[index] = static_cast<float>(total);
  }
  return true;
}

bool nade_sample(const NadeSample& q, int64_t begin, int64_t end, float* scratch) {
  bool good = true;
  for_tiles(begin, end, [&](int64_t first, int64_t n) {
    good = (n == 1 ? nade_sample_alone(q, first, SampleSpace(q.model, scratch).logits, scratch, nullptr, 0)
                   : sample_tile(q, first, n, scratch)) &&
           good;
  });
  return good;
}

}  // namespace pyar::cpu::PYAR_LEVEL
