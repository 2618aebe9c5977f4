#pragma once
// Reports in which every number differs, and a metrics page as its lines, so that no figure can stand in for another.

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/engine/step_report.h"
#include "runtime/telemetry/telemetry.h"

namespace regatta::testing {

/// Numbers that never repeat; exact in double.
class Fresh {
 public:
  explicit Fresh(std::int64_t start) : last_(start) {}
  std::int64_t whole() { return last_ += 3; }
  double number() { return static_cast<double>(whole()) + 0.25; }

 private:
  std::int64_t last_;
};

inline GroupReport fresh_group(const std::string& name, Fresh& fresh) {
  GroupReport g{.name = name, .numel = fresh.whole()};
  for (double* figure : {&g.lr, &g.grad_norm, &g.update_rms, &g.weight_rms, &g.update_to_weight, &g.smallest_line_norm,
                         &g.largest_line_norm})
    *figure = fresh.number();
  for (std::int64_t* figure : {&g.zero_lines, &g.clamped_lines, &g.non_finite_lines}) *figure = fresh.whole();
  return g;
}

inline StepReport fresh_report(std::int64_t step, std::int64_t skipped_steps, Fresh& fresh) {
  StepReport r{.step = step, .skipped_steps = skipped_steps};
  for (double* figure : {&r.lr, &r.grad_norm, &r.loss_scale}) *figure = fresh.number();
  r.groups = {fresh_group("matrices", fresh), fresh_group("rest", fresh)};
  StepTimes& t = r.times;
  for (double* figure : {&t.wait_grad_seconds, &t.vote_seconds, &t.sweep_seconds, &t.wait_exchange_seconds,
                         &t.wait_gather_seconds, &t.step_seconds, &t.grad_comm_seconds, &t.gather_comm_seconds})
    *figure = fresh.number();
  for (std::int64_t* figure : {&r.bytes.reduce_scatter, &r.bytes.all_gather, &r.bytes.exchange, &r.bytes.vote})
    *figure = fresh.whole();
  return r;
}

inline TrainerFacts fresh_trainer_facts(Fresh& fresh) {
  TrainerFacts facts;
  facts.loss = fresh.number();
  facts.tokens = fresh.whole();
  for (double* figure : {&facts.data_seconds, &facts.forward_seconds, &facts.backward_seconds})
    *figure = fresh.number();
  return facts;
}

struct MetricsPage {
  std::map<std::string, std::string> help, type;  ///< by metric
  std::map<std::string, double> samples;          ///< by name and labels as printed

  /// Lines that are said twice, or are no lines of a page, are left in `wrong`.
  explicit MetricsPage(const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string hash, kind, name, rest;
      if (line.rfind("# ", 0) == 0) {
        words >> hash >> kind >> name >> std::ws;
        std::getline(words, rest);
        auto& where = kind == "HELP" ? help : type;
        if (!where.emplace(name, rest).second) wrong.push_back(line);
        continue;
      }
      const std::size_t space = line.rfind(' ');
      if (space == std::string::npos ||
          !samples.emplace(line.substr(0, space), std::stod(line.substr(space + 1))).second)
        wrong.push_back(line);
    }
  }
  std::vector<std::string> wrong;
};

}  // namespace regatta::testing
