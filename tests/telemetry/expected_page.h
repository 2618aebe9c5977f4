#pragma once
// What a page must say, kept as plain sums of what was handed in, apart from the code that makes pages.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "runtime/telemetry/metrics.h"
#include "runtime/version.h"
#include "tests/telemetry/figures.h"

namespace regatta::testing {

inline double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

inline std::string number_text(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

// What the page of one rank must say, kept as plain sums of what was handed in.
class ExpectedPage {
 public:
  ExpectedPage(const sharding::Mesh& mesh, int rank, int world_size, std::int64_t state_bytes) {
    char node[256] = "";
    ::gethostname(node, sizeof node - 1);
    common_ = "job=\"j\",rank=\"" + std::to_string(rank) + "\",node=\"" + node + "\",dp=\"" +
              std::to_string(mesh.coordinate(rank, "dp")) + "\",tp=\"" + std::to_string(mesh.coordinate(rank, "tp")) +
              "\"";
    set("regatta_info", 1,
        ",version=\"" + std::string(build_facts().version) + "\",world_size=\"" + std::to_string(world_size) +
            "\",rule=\"the rule\",mesh=\"" + mesh.text() + "\",transport=\"the transport\"");
    set("regatta_world_size", world_size);
    set("regatta_state_bytes", static_cast<double>(state_bytes));
    for (const char* name : {"steps", "skipped_steps", "clipped_steps", "setting_changes", "tokens", "live_proofs",
                             "live_proof_differences"})
      set(std::string("regatta_") + name + "_total", 0);
    for (const char* collective : {"reduce_scatter", "all_gather", "exchange", "vote"})
      set("regatta_sent_bytes_total", 0, of("collective", collective));
    for (const char* collective : {"reduce_scatter", "all_gather"})
      set("regatta_communication_seconds_total", 0, of("collective", collective));
    for (const char* collective : {"reduce_scatter", "exchange", "all_gather"})
      set("regatta_exposed_communication_seconds_total", 0, of("collective", collective));
    for (const std::string_view phase : metrics::phases) phase_seconds_[std::string(phase)] = {};
  }

  void step(const StepReport& r, const TrainerFacts& facts) {
    set("regatta_steps_total", static_cast<double>(r.step));
    set("regatta_skipped_steps_total", static_cast<double>(r.skipped_steps));
    add("regatta_clipped_steps_total", r.clip_factor < 1 ? 1 : 0);
    add("regatta_setting_changes_total", r.command.kind == Command::Kind::set ? 1 : 0);
    if (!r.skipped) add("regatta_tokens_total", static_cast<double>(facts.tokens));
    if (r.proof) {
      add("regatta_live_proofs_total", 1);
      add("regatta_live_proof_differences_total", static_cast<double>(r.proof->differing));
    }
    set("regatta_loss", *facts.loss);
    set("regatta_learning_rate", r.lr);
    set("regatta_loss_scale_ratio", r.loss_scale);
    set("regatta_grad_norm", r.grad_norm);
    set("regatta_clip_ratio", r.clip_factor);
    if (!r.skipped) groups(r);
    const auto sent = [&](const char* name, double value) {
      add("regatta_sent_bytes_total", value, of("collective", name));
    };
    sent("reduce_scatter", static_cast<double>(r.bytes.reduce_scatter));
    sent("all_gather", static_cast<double>(r.bytes.all_gather));
    sent("exchange", static_cast<double>(r.bytes.exchange));
    sent("vote", static_cast<double>(r.bytes.vote));
    const StepTimes& t = r.times;
    add("regatta_communication_seconds_total", t.grad_comm_seconds, of("collective", "reduce_scatter"));
    add("regatta_communication_seconds_total", t.gather_comm_seconds, of("collective", "all_gather"));
    add("regatta_exposed_communication_seconds_total", t.wait_grad_seconds, of("collective", "reduce_scatter"));
    add("regatta_exposed_communication_seconds_total", t.wait_exchange_seconds, of("collective", "exchange"));
    add("regatta_exposed_communication_seconds_total", t.wait_gather_seconds, of("collective", "all_gather"));
    for (const auto& [phase, seconds] : std::map<std::string, double>{{"data", facts.data_seconds},
                                                                      {"forward", facts.forward_seconds},
                                                                      {"backward", facts.backward_seconds},
                                                                      {"wait_grad", t.wait_grad_seconds},
                                                                      {"vote", t.vote_seconds},
                                                                      {"sweep", t.sweep_seconds},
                                                                      {"wait_exchange", t.wait_exchange_seconds},
                                                                      {"wait_gather", t.wait_gather_seconds}})
      phase_seconds_[phase].push_back(seconds);
    ++steps_;
  }

  void top(const std::vector<std::pair<std::string, double>>& by_update,
           const std::vector<std::pair<std::string, double>>& by_spread) {
    std::erase_if(lines_, [](const auto& line) { return line.first.rfind("regatta_param_", 0) == 0; });
    for (const auto& [name, value] : by_update) set("regatta_param_update_rms", value, of("param", name));
    for (const auto& [name, value] : by_spread) set("regatta_param_line_norm_spread_ratio", value, of("param", name));
  }

  // The whole page, line by line. Times of the clock are between what the caller saw.
  void check(const std::string& text, double started, double longest) {
    const MetricsPage page(text);
    EXPECT_TRUE(page.wrong.empty()) << page.wrong.front();
    std::map<std::string, double> left = page.samples;
    const auto take = [&](const std::string& line) {
      EXPECT_TRUE(left.contains(line)) << line << " is missing";
      const double value = left.contains(line) ? left[line] : NAN;
      left.erase(line);
      return value;
    };
    for (const auto& [line, value] : lines_) EXPECT_NEAR(take(line), value, 1e-9 * std::abs(value)) << line;
    for (const auto& [phase, values] : phase_seconds_) {
      const std::string more = of("phase", phase);
      double sum = 0;
      for (const double value : values) sum += value;
      EXPECT_NEAR(take(name_of("regatta_step_phase_seconds_sum", more)), sum, 1e-9 * sum) << phase;
      EXPECT_EQ(take(name_of("regatta_step_phase_seconds_count", more)), values.size()) << phase;
      for (const double bound : metrics::time_bounds)
        EXPECT_EQ(take(name_of("regatta_step_phase_seconds_bucket", more + ",le=\"" + number_text(bound) + "\"")),
                  std::count_if(values.begin(), values.end(), [&](double value) { return value <= bound; }))
            << phase << " " << bound;
      EXPECT_EQ(take(name_of("regatta_step_phase_seconds_bucket", more + ",le=\"+Inf\"")), values.size()) << phase;
    }
    EXPECT_EQ(take(name_of("regatta_step_seconds_count")), steps_);
    const double sum = take(name_of("regatta_step_seconds_sum"));
    EXPECT_GE(sum, 0);
    EXPECT_LE(sum, longest);
    for (const double bound : metrics::time_bounds)
      EXPECT_LE(take(name_of("regatta_step_seconds_bucket", ",le=\"" + number_text(bound) + "\"")), steps_);
    EXPECT_EQ(take(name_of("regatta_step_seconds_bucket", ",le=\"+Inf\"")), steps_);
    for (const char* name : {"regatta_last_save_timestamp_seconds", "regatta_last_step_timestamp_seconds"}) {
      const double when = take(name_of(name));
      EXPECT_GE(when, started - 1) << name;
      EXPECT_LE(when, unix_time() + 1) << name;
    }
    const double memory = take(name_of("regatta_resident_memory_bytes"));
    EXPECT_GT(memory, 1e6);                    // a program with libraries
    // And in bytes of what is resident, not of all that is mapped; the kernel's two counts of it differ a little.
    EXPECT_LE(memory, 2 * most_resident_bytes());
    EXPECT_TRUE(left.empty()) << left.begin()->first << " was not expected";
  }

 private:
  /// The most that was ever resident, as the kernel tells it in KiB.
  static double most_resident_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
      if (line.rfind("VmHWM:", 0) == 0) return 1024 * std::stod(line.substr(6));
    return 0;
  }
  static std::string of(const std::string& label, const std::string& value) {
    return "," + label + "=\"" + value + "\"";
  }
  std::string name_of(const std::string& metric, const std::string& more = "") const {
    return metric + "{" + common_ + more + "}";
  }
  void set(const std::string& metric, double value, const std::string& more = "") {
    lines_[name_of(metric, more)] = value;
  }
  void add(const std::string& metric, double value, const std::string& more = "") {
    lines_[name_of(metric, more)] += value;
  }
  void groups(const StepReport& r) {
    for (const GroupReport& g : r.groups) {
      const std::string group = of("group", g.name);
      set("regatta_group_grad_norm", g.grad_norm, group);
      set("regatta_update_rms", g.update_rms, group);
      set("regatta_normalized_update_rms", g.lr > 0 ? g.update_rms / g.lr : 0, group);
      set("regatta_weight_rms", g.weight_rms, group);
      set("regatta_update_to_weight_ratio", g.update_to_weight, group);
      set("regatta_line_norm_min", g.smallest_line_norm, group);
      set("regatta_line_norm_max", g.largest_line_norm, group);
      set("regatta_line_norm_spread_ratio", g.smallest_line_norm > 0 ? g.largest_line_norm / g.smallest_line_norm : 0,
          group);
      set("regatta_zero_lines", static_cast<double>(g.zero_lines), group);
      set("regatta_clamped_lines", static_cast<double>(g.clamped_lines), group);
      set("regatta_non_finite_lines", static_cast<double>(g.non_finite_lines), group);
    }
  }

  std::string common_;
  std::map<std::string, double> lines_;
  std::map<std::string, std::vector<double>> phase_seconds_;
  int steps_ = 0;
};

}  // namespace regatta::testing
