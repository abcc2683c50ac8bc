// TableNADE on the CPU: checks, memory, threads. The loops are in *_kernel.cpp.
#include "cpu/any_order/table_nade.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <limits>
#include <map>
#include <tuple>

#include "cpu/any_order/host.h"

namespace pyar::cpu {
namespace {

// From their description, float64 [D, 7].
std::vector<TableColumn> read_columns(const Tensor& description) {
  STD_TORCH_CHECK(description.dim() == 2 && description.size(0) >= 1, "columns must be [D, 7], got ",
                  shape_text(shape_of(description)));
  const int64_t D = description.size(0);
  const Tensor rows = checked(description, "columns", ScalarType::Double, "float64", {D, 7});
  const double* row = static_cast<const double*>(rows.const_data_ptr());
  std::map<std::tuple<int64_t, int64_t, bool>, int64_t> forms;
  std::vector<TableColumn> columns;
  int64_t inputs = 0, outputs = 0;
  for (int64_t d = 0; d < D; ++d, row += 7) {
    STD_TORCH_CHECK(row[0] >= 0 && row[0] <= static_cast<double>(ColumnKind::laplace) && row[1] >= 1 && row[1] < 1e9,
                    "columns must hold kinds 0 ... 3 and counts of at least 1, got ", row[0], " and ", row[1]);
    TableColumn column{};
    column.kind = static_cast<ColumnKind>(static_cast<int64_t>(row[0]));
    column.count = static_cast<int64_t>(row[1]);
    const bool categories = column.kind == ColumnKind::categories;
    STD_TORCH_CHECK(categories || (row[2] >= 0 && row[3] >= 0), "columns must hold no negative floors and steps, got ",
                    row[2], " and ", row[3]);
    column.inputs = inputs;
    column.width = categories ? column.count - 1 : 2;
    column.outputs = outputs;
    column.P = !categories ? 3 * column.count : column.count > 2 ? column.count : column.count - 1;
    column.min_scale = static_cast<float>(row[2]);
    column.step = row[3];
    column.origin = row[4];
    column.low = row[5];
    column.high = row[6];
    const auto alike = std::make_tuple(static_cast<int64_t>(column.kind), column.count, column.step > 0);
    column.form = forms.try_emplace(alike, static_cast<int64_t>(forms.size())).first->second;
    inputs += column.width;
    outputs += column.P;
    columns.push_back(column);
  }
  return columns;
}

class Model {
 public:
  Model(Crew& crew, const Tensor& columns, const Tensor& W, const Tensor& U, const Tensor& c,
        const std::vector<Tensor>& hidden, const Tensor& V, const Tensor& b, int64_t activation)
      : columns_(read_columns(columns)), layers_(crew, parameters_, c, hidden, activation, view_) {
    const TableColumn& last = columns_.back();
    const int64_t D = static_cast<int64_t>(columns_.size()), outputs = last.outputs + last.P;
    for (const TableColumn& column : columns_) view_.P = std::max(view_.P, column.P);
    view_.W = parameters_.keep(W, "W", {last.inputs + last.width, view_.H});
    view_.U = parameters_.keep(U, "U", {D, view_.H});
    view_.V = parameters_.keep(V, "V", {outputs, view_.F});
    view_.b = parameters_.keep(b, "b", {outputs});
    view_.D = D;
    view_.columns = columns_.data();
  }
  Model(const Model&) = delete;

  const TableNadeParameters& view() const { return view_; }

 private:
  std::vector<TableColumn> columns_;
  Parameters parameters_;
  TableNadeParameters view_{};
  DenseLayers layers_;
};

const bool* flags(const Tensor& t) { return static_cast<const bool*>(t.const_data_ptr()); }

// The walks of an operation, what is observed before what is asked and both in the order; keeps contiguous copies
// alive.
class TableWalks {
 public:
  // The target is all that is not observed if there is none.
  TableWalks(const Tensor& x, const Tensor& order, const Tensor& observed, const Tensor* target,
             const TableNadeParameters& m) {
    STD_TORCH_CHECK(x.dim() == 2, "x must be [R, ", m.D, "], got ", shape_text(shape_of(x)));
    count = x.size(0);
    const std::vector<int64_t> shape = {count, m.D};
    x_ = checked(x, "x", ScalarType::Float, "float32", shape);
    const Tensor orders = checked_integers(order, "order", shape, m.D);
    const Tensor known = checked(observed, "observed", ScalarType::Bool, "bool", shape);
    const Tensor asked = target == nullptr ? known : checked(*target, "target", ScalarType::Bool, "bool", shape);
    path_.resize(count * m.D);
    begins_.resize(count);
    ends_.resize(count);
    const float* const values = static_cast<const float*>(x_.const_data_ptr());
    std::vector<int64_t> seen(m.D, -1);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = r * m.D;
      const bool *first = flags(known) + at, *second = flags(asked) + at;
      int64_t* next = path_.data() + at;
      const auto take = [&](const auto& wanted) {
        for (int64_t s = 0; s < m.D; ++s) {
          const int64_t d = integers(orders)[at + s];
          if (wanted(d)) *next++ = d;
        }
        return next - path_.data() - at;
      };
      const auto is_asked = [&](int64_t d) { return target == nullptr ? !first[d] : second[d]; };
      for (int64_t s = 0; s < m.D; ++s) {
        const int64_t d = integers(orders)[at + s];
        STD_TORCH_CHECK(seen[d] != r, "order must hold permutations, but one visits ", d, " twice");
        seen[d] = r;
        STD_TORCH_CHECK(!(first[d] && is_asked(d)), "observed and target must not overlap, but both hold column ", d);
        if (first[d] || (is_asked(d) && target != nullptr)) check_value(m.columns[d], d, values[at + d]);
      }
      begins_[r] = take([&](int64_t d) { return first[d]; });
      ends_[r] = take(is_asked);
      take([&](int64_t d) { return !first[d] && !is_asked(d); });
    }
    view = {values, path_.data(), begins_.data(), ends_.data()};
  }
  TableWalks(const TableWalks&) = delete;

  int64_t count = 0;
  Walks<float> view{};

 private:
  static void check_value(const TableColumn& column, int64_t d, float value) {
    if (column.kind != ColumnKind::categories) return;
    STD_TORCH_CHECK(value >= 0 && value < static_cast<float>(column.count) && value == std::floor(value),
                    "x must hold 0 ... ", column.count - 1, " in column ", d, ", got ", value);
  }

  Tensor x_;
  std::vector<int64_t> path_, begins_, ends_;
};

// Zeros [R, D].
Tensor zeros(const Tensor& like, int64_t R, int64_t D) {
  Tensor result = torch::stable::new_empty(like, {R, D});
  if (R > 0) std::memset(result.mutable_data_ptr(), 0, R * D * sizeof(float));
  return result;
}

Tensor table_nade_path_log_probs(Tensor x, Tensor order, Tensor observed, Tensor target, Tensor columns, Tensor W,
                                 Tensor U, Tensor c, std::vector<Tensor> hidden, Tensor V, Tensor b,
                                 int64_t activation) {
  Crew crew;
  const Model model(crew, columns, W, U, c, hidden, V, b, activation);
  const TableWalks walks(x, order, observed, &target, model.view());
  Tensor terms = zeros(b, walks.count, model.view().D);
  TableNadeForward q{};
  q.model = model.view();
  q.walks = walks.view;
  q.temperature = 1.0f;
  q.terms = static_cast<float*>(terms.mutable_data_ptr());
  share_steps(crew, walks.count, q, PYAR_FOR_THIS_CPU(table_nade_forward),
              PYAR_FOR_THIS_CPU(table_nade_forward_scratch)(q.model));
  return terms;
}

std::tuple<Tensor, Tensor> table_nade_sample(Tensor x, Tensor order, Tensor observed, Tensor columns, Tensor W,
                                             Tensor U, Tensor c, std::vector<Tensor> hidden, Tensor V, Tensor b,
                                             int64_t activation, Tensor seed, Tensor indices, double temperature) {
  Crew crew;
  const Model model(crew, columns, W, U, c, hidden, V, b, activation);
  const TableWalks walks(x, order, observed, nullptr, model.view());
  check_temperature(temperature);
  const Tensor numbers = checked_integers(indices, "indices", {walks.count}, std::numeric_limits<int64_t>::max());
  Tensor drawn = torch::stable::new_empty(b, {walks.count, model.view().D});
  Tensor terms = zeros(b, walks.count, model.view().D);
  TableNadeSample q{};
  q.model = model.view();
  q.walks = walks.view;
  q.seed = checked_seed(seed);
  q.indices = integers(numbers);
  q.temperature = static_cast<float>(temperature);
  q.x = static_cast<float*>(drawn.mutable_data_ptr());
  q.terms = static_cast<float*>(terms.mutable_data_ptr());
  share_samples(crew, walks.count, q, PYAR_FOR_THIS_CPU(table_nade_sample),
                PYAR_FOR_THIS_CPU(table_nade_sample_scratch)(q.model));
  return {drawn, terms};
}

STABLE_TORCH_LIBRARY_IMPL(pyar, CPU, m) {
  m.impl("table_nade_path_log_probs", TORCH_BOX(&table_nade_path_log_probs));
  m.impl("table_nade_sample", TORCH_BOX(&table_nade_sample));
}

}  // namespace
}  // namespace pyar::cpu
