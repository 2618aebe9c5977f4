#pragma once
// A small job of several steps that can be computed apart: whole matrices, one rank, fp64, the formulas as they stand.
// Gradients are whole numbers, so that their sums are exact in any order and every layout must come to the same bits;
// some parameters get none in some steps. Steps may be spoilt by a gradient that is not finite, settings may change.

#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "tests/support/reference.h"

namespace regatta::testing {

struct WholeJob {
  struct Spoilt {  // one element of one micro-batch's gradient
    int step, micro_batch, param;
    std::int64_t element;
    float value;
  };
  std::vector<Param> params;
  std::vector<Group> groups;  ///< rules reg and adamw
  EngineOptions options;      ///< but for what says how the work is shared
  int global_batch = 4;
  int steps = 8;
  std::uint64_t seed = 1;
  std::vector<Spoilt> spoilt;
  std::map<int, Command> commands;  ///< posted for the vote of a step; they hold from the one after it

  static std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
  }
  std::uint64_t random(std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t d = 0) const {
    return mix(mix(mix(mix(seed * 0x9e3779b97f4a7c15U + a) + b) + c) + d + 1);
  }
  std::int64_t numel(int p) const {
    std::int64_t numel = 1;
    for (const std::int64_t extent : params[p].shape) numel *= extent;
    return numel;
  }
  float initial(int p, std::int64_t i) const {  // exact in every dtype
    return static_cast<float>(static_cast<int>(random(1000, p, i) % 65) - 32) / 16;
  }
  /// In the first micro-batch of the step in which the parameter has a gradient; nothing when there is none.
  void spoil(int step, int param, float value, std::int64_t element = 0) {
    for (int k = 0; k < global_batch; ++k)
      if (!gradient(step, k, param).empty()) return spoilt.push_back({step, k, param, element, value});
  }
  double lr(int step) const { return 0.1 / (1 + step % 3); }

  /// Without the loss scale; empty when there is none in this micro-batch.
  std::vector<float> gradient(int step, int micro_batch, int p) const {
    if (random(step, micro_batch, p) % 4 == 0 || random(step, 77, p) % 5 == 0) return {};
    const std::int64_t cols = params[p].shape.back();
    std::vector<float> grad(static_cast<std::size_t>(numel(p)));
    for (std::int64_t i = 0; i < numel(p); ++i)
      if (random(step, 500, p, i / cols) % 6 != 0)
        grad[i] = static_cast<float>(static_cast<int>(random(step, 10000 + micro_batch, p, i) % 17) - 8);
    for (const Spoilt& s : spoilt)
      if (s.step == step && s.micro_batch == micro_batch && s.param == p) grad[s.element] = s.value;
    return grad;
  }
};

/// What a group's or a parameter's figures must be.
struct WholeFigures {
  std::int64_t numel = 0;
  double grad_norm = 0, update_rms = 0, weight_rms = 0, smallest = 0, largest = 0;
  std::int64_t zero_lines = 0, clamped_lines = 0;
};

/// What a step must tell and leave behind.
struct WholeStep {
  bool skipped = false;
  std::string culprit;
  std::int64_t step = 0, skipped_steps = 0;
  double lr = 0, grad_norm = 0, clip_factor = 1, loss_scale = 1, loss_scale_after = 1;
  std::vector<double> group_lr;
  std::vector<WholeFigures> groups, params;  ///< params: of the last step that was not skipped
  std::vector<std::vector<double>> weights;  ///< by parameter
};

class WholeJobModel {
 public:
  explicit WholeJobModel(const WholeJob& job)
      : job_(job),
        loss_scale_(job.options.loss_scaling.initial),
        clip_(job.options.clip),
        own_lr_(job.groups.size()),
        param_figures_(job.params.size()) {
    for (const Group& group : job.groups) {
      GroupSettings& settings = settings_.emplace_back();
      settings.is_reg = group.rule->name() == "reg";
      for (const auto& [name, value] : settings_of(*group.rule)) settings.set(name, value);
    }
    for (std::size_t p = 0; p < job.params.size(); ++p) {
      const Param& param = job.params[p];
      std::vector<double>& weights = weights_.emplace_back();
      for (std::int64_t i = 0; i < job.numel(static_cast<int>(p)); ++i)
        weights.push_back(job.initial(static_cast<int>(p), i));
      moment1_.emplace_back(weights.size());
      moment2_.emplace_back(weights.size());
      const std::int64_t cols = param.shape.size() == 1 ? param.shape[0] : std::ssize(weights) / param.shape[0];
      const std::int64_t rows = std::ssize(weights) / cols;
      std::vector<MatrixShape>& blocks = blocks_.emplace_back();
      for (const std::int64_t each : param.block_rows) blocks.push_back({each, cols});
      if (blocks.empty()) blocks.push_back({rows, cols});
      param_figures_[p].numel = std::ssize(weights);
    }
  }

  std::vector<WholeStep> run() {
    std::vector<WholeStep> steps;
    for (int step = 0; step < job_.steps; ++step) steps.push_back(make(step));
    return steps;
  }

 private:
  struct GroupSettings {
    bool is_reg = false;
    RegSettings reg;
    AdamwSettings adamw;
    void set(const std::string& name, double value) {
      if (name == "momentum") reg.momentum = value;
      if (name == "rho") reg.rho = value;
      if (name == "weight_decay") (is_reg ? reg.weight_decay : adamw.weight_decay) = value;
      if (name == "eps") (is_reg ? reg.eps : adamw.eps) = value;
      if (name == "passes") reg.passes = static_cast<int>(value);
      if (name == "beta1") adamw.beta1 = value;
      if (name == "beta2") adamw.beta2 = value;
    }
    void set(const std::string& name, const std::string& value) {
      using Norm = RegSettings::Norm;
      if (name == "p") reg.p = value == "1" ? Norm::one : value == "2" ? Norm::two : Norm::inf;
      if (name == "zero_line")
        reg.zero_line = value == "count" ? RegSettings::ZeroLine::count : RegSettings::ZeroLine::keep;
      set(name, std::strtod(value.c_str(), nullptr));
    }
  };

  WholeStep make(int step) {
    WholeStep told;
    told.lr = commanded_lr_.value_or(job_.lr(step));
    told.loss_scale = loss_scale_;
    told.groups.resize(job_.groups.size());
    for (std::size_t g = 0; g < job_.groups.size(); ++g)
      told.group_lr.push_back(own_lr_[g].value_or(told.lr * job_.groups[g].lr_scale));
    std::vector<std::vector<double>> sums;
    for (std::size_t p = 0; p < job_.params.size(); ++p) {
      std::vector<double>& sum = sums.emplace_back(weights_[p].size());
      for (int k = 0; k < job_.global_batch; ++k) {
        const std::vector<float> grad = job_.gradient(step, k, static_cast<int>(p));
        for (std::size_t i = 0; i < grad.size(); ++i) sum[i] += grad[i];
      }
      for (const double x : sum)
        if (!std::isfinite(x) && !told.skipped) {
          told.skipped = true;
          told.culprit = job_.params[p].name;
        }
      told.groups[job_.params[p].group].numel += std::ssize(sum);
    }
    if (!told.skipped) update(told, sums);
    if (told.skipped) ++skipped_;
    told.step = step_;
    told.skipped_steps = skipped_;
    told.params = param_figures_;
    told.weights = weights_;
    adapt(told.skipped);
    told.loss_scale_after = loss_scale_;
    if (const auto command = job_.commands.find(step); command != job_.commands.end()) apply(command->second);
    return told;
  }

  void adapt(bool skipped) {
    const LossScaling& scaling = job_.options.loss_scaling;
    if (scaling.growth_interval == 0) return;
    if (skipped) {
      loss_scale_ = std::max(loss_scale_ / 2, scaling.smallest);
      finite_ = 0;
    } else if (++finite_ == scaling.growth_interval) {
      loss_scale_ *= 2;
      finite_ = 0;
    }
  }

  void apply(const Command& command) {
    if (command.kind != Command::Kind::set) return;
    for (int g = 0; g < std::ssize(job_.groups); ++g) {
      if (command.group != Command::all_groups && command.group != g) continue;
      GroupSettings& settings = settings_[g];
      if (command.has(Command::weight_decay_given)) settings.set("weight_decay", command.weight_decay);
      if (command.has(Command::momentum_given)) settings.set("momentum", command.momentum);
      if (command.has(Command::rho_given)) settings.set("rho", command.rho);
      if (command.has(Command::lr_given)) own_lr_[g].reset();
      if (command.has(Command::lr_given) && command.group == g) own_lr_[g] = command.lr;
    }
    if (command.has(Command::lr_given) && command.group == Command::all_groups) commanded_lr_ = command.lr;
    if (command.has(Command::clip_given)) clip_ = command.clip;
  }

  void update(WholeStep& told, std::vector<std::vector<double>>& sums) {
    ++step_;
    double total = 0;
    std::vector<double> of_group(told.groups.size());
    for (std::size_t p = 0; p < sums.size(); ++p) {
      double squares = 0;
      for (const double x : sums[p]) squares += x * x;
      param_figures_[p].grad_norm = std::sqrt(squares);
      of_group[job_.params[p].group] += squares;
      total += squares;
    }
    told.grad_norm = std::sqrt(total);
    if (clip_ > 0) told.clip_factor = std::min(1.0, clip_ / (told.grad_norm + 1e-6));
    struct Squares {
      double update = 0, weight = 0;
    };
    std::vector<Squares> group_squares(told.groups.size());
    for (std::size_t g = 0; g < told.groups.size(); ++g) told.groups[g].grad_norm = std::sqrt(of_group[g]);
    for (std::size_t p = 0; p < sums.size(); ++p) {
      const int group = job_.params[p].group;
      const std::vector<double> before = weights_[p];
      for (double& x : sums[p]) x *= told.clip_factor;
      WholeFigures lines;
      settings_[group].is_reg ? step_reg(p, sums[p], told.group_lr[group], lines)
                              : step_adamw(p, sums[p], told.group_lr[group]);
      Squares mine;
      for (std::size_t i = 0; i < before.size(); ++i) {
        mine.update += std::pow(weights_[p][i] - before[i], 2);
        mine.weight += std::pow(weights_[p][i], 2);
      }
      group_squares[group].update += mine.update;
      group_squares[group].weight += mine.weight;
      take(param_figures_[p], mine.update, mine.weight);
      param_figures_[p].smallest = lines.smallest;
      param_figures_[p].largest = lines.largest;
      param_figures_[p].zero_lines = lines.zero_lines;
      param_figures_[p].clamped_lines = lines.clamped_lines;
      WholeFigures& all = told.groups[group];
      if (lines.smallest > 0 && (all.smallest == 0 || lines.smallest < all.smallest)) all.smallest = lines.smallest;
      all.largest = std::max(all.largest, lines.largest);
      all.zero_lines += lines.zero_lines;
      all.clamped_lines += lines.clamped_lines;
    }
    for (std::size_t g = 0; g < told.groups.size(); ++g)
      take(told.groups[g], group_squares[g].update, group_squares[g].weight);
  }

  static void take(WholeFigures& figures, double update, double weight) {
    figures.update_rms = std::sqrt(update / static_cast<double>(figures.numel));
    figures.weight_rms = std::sqrt(weight / static_cast<double>(figures.numel));
  }

  static ReferenceMatrix transposed(const ReferenceMatrix& a) {
    ReferenceMatrix b(a.cols, a.rows);
    for (std::int64_t i = 0; i < a.rows; ++i)
      for (std::int64_t j = 0; j < a.cols; ++j) b.at(j, i) = a.at(i, j);
    return b;
  }
  static ReferenceMatrix direction_of_rows(ReferenceMatrix a, const RegSettings& settings) {
    for (std::int64_t i = 0; i < a.rows; ++i) {
      const double norm = reference_norm(a, Line::row, i, settings.p);
      for (std::int64_t j = 0; j < a.cols && norm > 0; ++j) a.at(i, j) /= std::max(norm, settings.eps);
    }
    return a;
  }

  void step_reg(std::size_t p, const std::vector<double>& grad, double lr, WholeFigures& figures) {
    const RegSettings& settings = settings_[job_.params[p].group].reg;
    std::int64_t at = 0;
    for (const MatrixShape& block : blocks_[p]) {
      const auto part = [&](std::vector<double>& of) {
        return ReferenceMatrix(block.rows, block.cols, {of.begin() + at, of.begin() + at + block.numel()});
      };
      std::vector<double> copy = grad;
      ReferenceReg reg{settings, part(moment1_[p]), part(weights_[p])};
      reg.step(part(copy), lr);
      std::copy(reg.momentum.values.begin(), reg.momentum.values.end(), moment1_[p].begin() + at);
      std::copy(reg.weight.values.begin(), reg.weight.values.end(), weights_[p].begin() + at);
      at += block.numel();
      // The lines of the last pass, as the ones before left them: the direction of one pass fewer, begun with the other
      // line.
      const Line line = block.rows <= block.cols ? Line::row : Line::column;
      ReferenceMatrix before = reg.momentum;
      for (int pass = 0; pass + 1 < settings.passes; ++pass) {
        const bool rows = ((settings.passes - 1 - pass) % 2 == 0) == (line == Line::row);
        RegSettings one = settings;
        one.passes = 1;
        before = rows ? direction_of_rows(before, one) : transposed(direction_of_rows(transposed(before), one));
      }
      for (std::int64_t k = 0; k < std::min(block.rows, block.cols); ++k) {
        const double norm = reference_norm(before, line, k, settings.p);
        if (norm == 0) {
          ++figures.zero_lines;
          continue;
        }
        if (norm < settings.eps) ++figures.clamped_lines;
        if (figures.smallest == 0 || norm < figures.smallest) figures.smallest = norm;
        figures.largest = std::max(figures.largest, norm);
      }
    }
  }

  void step_adamw(std::size_t p, const std::vector<double>& grad, double lr) {
    ReferenceAdamw adamw{settings_[job_.params[p].group].adamw, moment1_[p], moment2_[p], weights_[p],
                         static_cast<int>(step_ - 1)};
    adamw.step(grad, lr);
    moment1_[p] = adamw.moment1;
    moment2_[p] = adamw.moment2;
    weights_[p] = adamw.weight;
  }

  const WholeJob& job_;
  std::vector<GroupSettings> settings_;
  std::vector<std::vector<MatrixShape>> blocks_;
  std::vector<std::vector<double>> weights_, moment1_, moment2_;
  std::int64_t step_ = 0, skipped_ = 0;
  int finite_ = 0;
  double loss_scale_, clip_;
  std::optional<double> commanded_lr_;
  std::vector<std::optional<double>> own_lr_;
  std::vector<WholeFigures> param_figures_;
};

}  // namespace regatta::testing
