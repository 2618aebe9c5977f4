// `regatta ctl` in this process, against a served mailbox: what its words become, what it prints, how it fails.

#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "cli/commands.h"
#include "tests/control/calls.h"

namespace regatta::control {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Kind = Command::Kind;

class Ctl : public ::testing::Test {
 protected:
  Ctl() : token_file_(::testing::TempDir() + "ctl_token" + std::to_string(::getpid())) {
    std::ofstream(token_file_) << "a-token-of-some-length \r\n";
    server_ = std::make_unique<Server>(ServerSettings{.address = "127.0.0.1:0", .token_file = token_file_}, mailbox_);
    mailbox_.start(
        {.steps = 9, .world_size = 2, .mesh = "dp=2", .ranks = {{1, 2, 3, 4}}, .plan_text = "text", .fingerprint = 5});
    job_ = std::jthread([this](const std::stop_token& stop) {
      for (std::int64_t step = 1; !stop.stop_requested(); ++step) {
        mailbox_.publish({.step = step});
        const std::optional<Request> request = mailbox_.take(5ms);
        if (!request) continue;
        const std::scoped_lock lock(mutex_);
        taken_.push_back(*request);
        mailbox_.answer(request->command.number, answer_);
      }
    });
  }
  ~Ctl() override { std::filesystem::remove(token_file_); }

  // What it prints; throws what it throws.
  std::string ctl(std::vector<std::string> words, std::vector<std::string> flags = {}) {
    CLI::App app;
    cli::add_ctl(app);
    if (flags.empty()) flags = {"--token-file", token_file_};
    std::vector<std::string> all{"ctl", server_->address()};
    all.insert(all.end(), words.begin(), words.end());
    all.insert(all.end(), flags.begin(), flags.end());
    std::reverse(all.begin(), all.end());  // as CLI11 wants them
    ::testing::internal::CaptureStdout();
    try {
      app.parse(all);
    } catch (...) {
      ::testing::internal::GetCapturedStdout();
      throw;
    }
    return ::testing::internal::GetCapturedStdout();
  }
  Code code_of(const std::vector<std::string>& words, const std::vector<std::string>& flags = {},
               std::string* said = nullptr) {
    try {
      ctl(words, flags);
    } catch (const Error& error) {
      if (said) *said = error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << "more than one sentence";
      return error.code();
    }
    ADD_FAILURE() << words.front() << " was taken";
    return Code::aborted;
  }
  std::vector<Request> taken() {
    const std::scoped_lock lock(mutex_);
    return taken_;
  }
  void answer_with(Answer answer) {
    const std::scoped_lock lock(mutex_);
    answer_ = std::move(answer);
  }

  std::string token_file_;
  Mailbox mailbox_;
  std::unique_ptr<Server> server_;
  std::mutex mutex_;
  std::vector<Request> taken_;
  Answer answer_{.step = 7};
  std::jthread job_;
};

TEST_F(Ctl, EveryWordIsItsCommandAndSaysWhatItDid) {
  const std::vector<std::tuple<std::string, Kind, std::string>> words{
      {"checkpoint", Kind::save, "saved before step 7\n"},
      {"pause", Kind::pause, "paused before step 7\n"},
      {"resume", Kind::resume, "goes on with step 7\n"},
      {"drain", Kind::drain, "ends before step 7\n"}};
  for (const auto& [word, kind, done] : words) {
    EXPECT_EQ(ctl({word}), done);
    EXPECT_EQ(taken().back().command.kind, kind);
    EXPECT_EQ(json::parse(ctl({word, "--json"}))["applies_at_step"], 7);
  }
  EXPECT_EQ(ctl({"set", "lr=0.5"}), "in effect on all ranks from step 7\n");
  EXPECT_EQ(taken().size(), 9U) << "a command was sent more than once";
  EXPECT_NE(taken().back().who.find("user="), std::string::npos);
  EXPECT_NE(taken().back().who.find('@'), std::string::npos) << taken().back().who;
}

TEST_F(Ctl, EverySettingByItsName) {
  const std::vector<std::tuple<std::string, std::uint32_t, double Command::*>> names{
      {"lr", Command::lr_given, &Command::lr},
      {"weight_decay", Command::weight_decay_given, &Command::weight_decay},
      {"momentum", Command::momentum_given, &Command::momentum},
      {"rho", Command::rho_given, &Command::rho},
      {"clip", Command::clip_given, &Command::clip}};
  std::vector<std::string> all{"set"};
  for (const auto& [name, field, place] : names) {
    for (const auto& [text, value] :
         std::vector<std::pair<std::string, double>>{{"0.25", 0.25}, {"0", 0}, {"1e-3", 1e-3}, {"-2", -2}}) {
      ctl({"set", name + "=" + text});
      const Command command = taken().back().command;
      EXPECT_EQ(command.kind, Kind::set);
      EXPECT_EQ(command.fields, field) << name;
      EXPECT_EQ(command.*place, value) << name << "=" << text;
      EXPECT_FALSE(taken().back().dry_run);
      EXPECT_EQ(taken().back().group, "");
    }
    all.push_back(name + "=" + std::to_string(field));
  }
  all.insert(all.end(), {"--group", "matrices", "--dry-run"});
  EXPECT_EQ(ctl(all), "not sent; would be in effect on all ranks from step 7\n");
  for (const auto& [name, field, place] : names) EXPECT_EQ(taken().back().command.*place, field) << name;
  EXPECT_EQ(taken().back().command.fields, 31U);
  EXPECT_EQ(taken().back().group, "matrices");
  EXPECT_TRUE(taken().back().dry_run);
}

TEST_F(Ctl, WordsThatAreNoSettingsAreNotSent) {
  for (const char* text : {"lr", "lr=", "=1", "lr=x", "lr=1x", "lr=1,5", "lr=0.1 ", "lr= 0.1", "LR=1", "passes=2",
                           "p=1", "lr:1", "lr=1e999", "beta1=0.9", "weight-decay=1"})
    EXPECT_EQ(code_of({"set", text}), Code::invalid_argument) << text;
  EXPECT_EQ(code_of({"set", "lr=0.1", "rho"}), Code::invalid_argument);
  EXPECT_THROW(ctl({"set"}), CLI::ParseError);
  EXPECT_THROW(ctl({"stop"}), CLI::ParseError);
  for (const char* number : {"0", "-1", "x"}) {
    EXPECT_THROW(ctl({"status", "--timeout", number}), CLI::ParseError) << number;
    EXPECT_THROW(ctl({"watch", "--steps", number}), CLI::ParseError) << number;
  }
  EXPECT_TRUE(taken().empty());
}

// Exit code 2 is for values that cannot be (Code::invalid_argument), 1 for the rest; the job's own words are told.
TEST_F(Ctl, RefusalsAreToldInTheJobsWords) {
  for (const Answer::Kind kind :
       {Answer::Kind::refused, Answer::Kind::unfit, Answer::Kind::full, Answer::Kind::given_up}) {
    answer_with({kind, 0, {}, "the job's own words"});
    for (const char* word : {"pause", "resume", "drain", "checkpoint"}) {
      std::string said;
      EXPECT_EQ(code_of({word}, {}, &said), kind == Answer::Kind::refused ? Code::invalid_argument : Code::transport);
      EXPECT_EQ(said, "the job's own words");
    }
  }
}

TEST_F(Ctl, TheTokenIsSentWithEveryWord) {
  const std::string wrong = token_file_ + "wrong";
  std::ofstream(wrong) << "another-token-of-some-length\n";
  const std::vector<std::vector<std::string>> words{{"status"},      {"plan"},  {"watch", "--steps", "1"},
                                                    {"set", "lr=1"}, {"pause"}, {"resume"},
                                                    {"checkpoint"},  {"drain"}};
  for (const std::vector<std::string>& each : words) {
    EXPECT_NO_THROW(ctl(each)) << each[0];
    std::string said;
    EXPECT_EQ(code_of(each, {"--token-file", wrong}, &said), Code::transport) << each[0];
    EXPECT_NE(said.find("not this job's"), std::string::npos) << said;
    EXPECT_EQ(code_of(each, {"--timeout", "120"}, &said), Code::transport) << each[0];
    EXPECT_NE(said.find("none was sent"), std::string::npos) << said;
  }
  EXPECT_EQ(taken().size(), 5U);
  std::filesystem::remove(wrong);
}

TEST_F(Ctl, FilesThatAreMissingAreNamed) {
  for (const std::vector<std::string>& flags : std::vector<std::vector<std::string>>{
           {"--token-file", "/no/file"},
           {"--tls-ca", token_file_},
           {"--tls-cert", token_file_},
           {"--tls-key", token_file_},
           {"--tls-cert", "a", "--tls-key", token_file_},
           {"--tls-ca", "a", "--tls-key", token_file_},
           {"--tls-ca", "a", "--tls-cert", token_file_},
           {"--tls-ca", "/no/file", "--tls-cert", token_file_, "--tls-key", token_file_}})
    EXPECT_EQ(code_of({"drain"}, flags), Code::invalid_argument) << flags[0];
  EXPECT_TRUE(taken().empty());
}

TEST_F(Ctl, StatusPlanAndSteps) {
  const json status = json::parse(ctl({"status", "--json"}));
  EXPECT_EQ(status["state"], "running");
  EXPECT_EQ(status["world_size"], 2);
  EXPECT_EQ(ctl({"status"}).rfind("running, 2 ranks (dp=2)", 0), 0U);
  EXPECT_EQ(json::parse(ctl({"plan", "--json"}))["wire_bytes"],
            json::parse(R"([{"reduce_scatter":1,"all_gather":2,"exchange":3,"vote":4}])"));
  EXPECT_EQ(ctl({"plan"}).rfind("text\n", 0), 0U);
  for (const int steps : {1, 3}) {
    const std::string count = std::to_string(steps);
    std::istringstream lines(ctl({"watch", "--json", "--steps", count}));
    std::int64_t last = 0;
    int read = 0;
    for (std::string line; std::getline(lines, line); ++read) {
      const std::int64_t step = json::parse(line)["step"];
      if (read > 0) {
        EXPECT_EQ(step, last + 1);
      }
      last = step;
    }
    EXPECT_EQ(read, steps);
    const std::string table = ctl({"watch", "--steps", count});
    EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), steps + 1) << table;
  }
}

TEST_F(Ctl, WatchEndsWithTheJob) {
  std::exception_ptr problem;
  std::thread watcher([&] {
    try {
      ctl({"watch", "--json"});
    } catch (...) {
      problem = std::current_exception();
    }
  });
  job_ = {};
  mailbox_.close("over");
  watcher.join();
  EXPECT_FALSE(problem);
}

TEST_F(Ctl, NobodyAnswersAndNobodyInTime) {
  std::string said;
  job_ = {};  // commands wait for ever now
  EXPECT_EQ(code_of({"pause"}, {"--timeout", "0.3", "--token-file", token_file_}, &said), Code::timeout);
  EXPECT_NE(said.find("may still be applied"), std::string::npos) << said;
  server_.reset();
  Mailbox other;  // a port that is nobody's: one that was served just now
  std::string address;
  {
    const Server server({.address = "127.0.0.1:0"}, other);
    address = server.address();
  }
  CLI::App app;
  cli::add_ctl(app);
  try {
    app.parse(std::vector<std::string>{"status", address, "ctl"});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::transport);
    EXPECT_NE(std::string(error.what()).find("no job answers at " + address), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace regatta::control
