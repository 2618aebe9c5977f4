#pragma once
// Drives a rule on one matrix as the engine does on one or several holders of it: runs, merged line statistics, owners'
// answers. The holders take turns in one thread.

#include <vector>

#include "runtime/device/thread_pool.h"
#include "runtime/rules/reg.h"

namespace regatta::testing {

struct RuleRun {
  const Rule& rule;
  MatrixShape shape;
  std::vector<float> momentum, weight;
  std::vector<float> second;  // AdamW's second moment
  kernels::SweepHealth health;
  std::int64_t steps = 0;

  RuleRun(const Rule& r, MatrixShape s, std::vector<float> w)
      : rule(r), shape(s), momentum(w.size()), weight(std::move(w)), second(momentum.size()) {}

  /// One step with the matrix cut at `cuts` (ascending element indices, 0 and the end left out). `one_sweep` uses
  /// update() for the rows that lie wholly in a run where the rule can.
  void step(const std::vector<float>& grad, double lr, ThreadPool& pool, std::vector<std::int64_t> cuts = {},
            bool one_sweep = true) {
    const StepInfo info{lr, ++steps, 1};
    health = {};
    cuts.insert(cuts.begin(), 0);
    cuts.push_back(shape.numel());
    const sharding::View view = rule.view(shape);
    std::vector<Holder> holders;
    for (std::size_t k = 0; k + 1 < cuts.size(); ++k) {
      if (cuts[k] >= cuts[k + 1]) continue;
      Holder holder{tensors(grad, {shape.rows, shape.cols, cuts[k], cuts[k + 1]}),
                    {momentum.data() + cuts[k], second.data() + cuts[k]},
                    {},
                    {}};
      if (view.kind == sharding::View::Kind::elements) {
        holder.point();
        rule.update(holder.tensors, shape, info, DType::f32, pool, health);
        continue;
      }
      const Range rows = holder.tensors.run.whole_rows();
      if (one_sweep && view.one_sweep_rows() && !rows.empty()) {
        const std::int64_t begin = rows.begin * shape.cols, end = rows.end * shape.cols;
        Holder closed{tensors(grad, {shape.rows, shape.cols, begin, end}), {momentum.data() + begin, nullptr}, {}, {}};
        closed.point();
        rule.update(closed.tensors, shape, info, DType::f32, pool, health);
        add_open(holders, grad, cuts[k], begin);
        add_open(holders, grad, end, cuts[k + 1]);
      } else {
        holders.push_back(std::move(holder));
      }
    }
    if (view.kind == sharding::View::Kind::lines && !holders.empty()) open_lines(holders, view, info, pool);
  }

 private:
  struct Holder {
    RunTensors tensors;
    void* state[2];
    std::vector<std::vector<float>> inverse;  // by pass
    std::vector<kernels::LineFactors> factors;
    void point() { tensors.state = state; }
  };

  RunTensors tensors(const std::vector<float>& grad, MatrixRun run) {
    RunTensors t;
    t.run = run;
    t.grad = grad.data() + run.begin;
    t.weight = weight.data() + run.begin;
    return t;
  }
  void add_open(std::vector<Holder>& holders, const std::vector<float>& grad, std::int64_t begin, std::int64_t end) {
    if (begin < end)
      holders.push_back(
          {tensors(grad, {shape.rows, shape.cols, begin, end}), {momentum.data() + begin, nullptr}, {}, {}});
  }

  void open_lines(std::vector<Holder>& holders, const sharding::View& view, const StepInfo& info, ThreadPool& pool) {
    kernels::LineSum terms;
    for (int pass = 0; pass < static_cast<int>(view.passes.size()); ++pass) {
      const bool rows = view.passes[pass] == Line::row;
      const std::int64_t lines = rows ? shape.rows : shape.cols;
      const int kinds = rule.stats_per_line(pass, shape);
      std::vector<kernels::LineSum> merged(lines * kinds);
      std::vector<bool> touched(lines);
      for (Holder& holder : holders) {
        holder.point();
        const std::int64_t first = rows ? holder.tensors.run.touched_rows().begin : 0;
        const std::int64_t count = rows ? holder.tensors.run.touched_rows().size() : lines;
        std::vector<kernels::LineSum> stats(count * kinds);
        rule.observe(pass, holder.tensors, shape, info, DType::f32, holder.factors, stats, pool);
        for (std::int64_t i = 0; i < count; ++i) {
          touched[first + i] = true;
          for (int s = 0; s < kinds; ++s) kernels::merge(merged[(first + i) * kinds + s], stats[s * count + i]);
        }
      }
      std::vector<float> inverse(lines);
      for (std::int64_t line = 0; line < lines; ++line) {
        if (!touched[line]) continue;
        const std::span<const kernels::LineSum> stats{&merged[line * kinds], static_cast<std::size_t>(kinds)};
        inverse[line] = rule.inverse(pass, shape, stats, health);
        if (view.block_scale && pass + 1 == static_cast<int>(view.passes.size()))
          kernels::add(terms, static_cast<double>(rule.block_term(stats, inverse[line])));
      }
      for (Holder& holder : holders) {
        const std::int64_t first = rows ? holder.tensors.run.touched_rows().begin : 0;
        holder.inverse.emplace_back(inverse.begin() + first, inverse.end());
        holder.factors.push_back({view.passes[pass], holder.inverse.back().data()});
      }
    }
    const double scale = rule.step_scale(shape, info, kernels::value(terms));
    for (Holder& holder : holders) {
      for (float& factor : holder.inverse.back()) factor = kernels::step_factor(factor, scale);
      rule.apply(holder.tensors, shape, info, DType::f32, holder.factors, pool, health);
    }
  }
};

}  // namespace regatta::testing
