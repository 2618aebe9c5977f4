#include "cli/usage.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

namespace regatta::cli {
namespace {

/// The number of single-character edits between two words (Levenshtein), one row at a time.
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t best_distance = word.size() / 3 + 1;
  for (const std::string& candidate : known) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance <= best_distance && (best.empty() || distance < best_distance)) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string without_last_period(std::string text) {
  while (!text.empty() && (text.back() == '.' || text.back() == '\n')) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

std::string usage_sentence(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  const CLI::App& command = chosen.empty() ? app : *chosen.front();
  const std::string full_name = chosen.empty() ? "regatta" : "regatta " + command.get_name();

  std::string what = without_last_period(error.what());
  const std::vector<std::string> extras = app.remaining(true);
  const bool no_command = chosen.empty() && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  const bool unexpected = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr || no_command;
  if (unexpected && !extras.empty()) {
    const std::string& word = extras.front();
    if (word.rfind('-', 0) == 0) {
      const std::string flag = word.substr(0, word.find('='));
      what = "unknown flag " + flag;
      const std::string guess = nearest(flag, flags_of(command));
      if (!guess.empty()) what += " (did you mean " + guess + "?)";
    } else if (chosen.empty()) {
      what = "unknown command '" + word + "'; the commands are " + joined(commands_of(app));
    } else {
      what = "unexpected argument '" + word + "'";
    }
  } else if (no_command) {
    what = "no command given; the commands are " + joined(commands_of(app));
  }
  return full_name + ": " + what + "; see " + full_name + " --help";
}

}  // namespace regatta::cli
