// A line per command, whole and on the disk's side of the stream as soon as it is written.

#include "runtime/control/audit_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <ctime>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/control/waiting.h"

namespace regatta::control {
namespace {

using nlohmann::json;
using Kind = Command::Kind;

class Audit : public ::testing::Test {
 protected:
  Audit() : path_(::testing::TempDir() + "audit_log" + std::to_string(::getpid())) { std::filesystem::remove(path_); }
  ~Audit() override { std::filesystem::remove(path_); }
  std::vector<json> lines() const {
    std::vector<json> parsed;
    for (const std::string& line : testing::lines_of(path_)) parsed.push_back(json::parse(line));
    return parsed;
  }
  std::string path_;
};

TEST_F(Audit, EveryKindOfCommandAcceptedAndNot) {
  AuditLog log(path_);
  const std::vector<std::pair<Kind, std::string>> kinds{{Kind::set, "set"},
                                                        {Kind::pause, "pause"},
                                                        {Kind::resume, "resume"},
                                                        {Kind::save, "checkpoint"},
                                                        {Kind::drain, "drain"}};
  std::size_t written = 0;
  for (const auto& [kind, name] : kinds) {
    for (const Answer::Kind answer : {Answer::Kind::accepted, Answer::Kind::refused, Answer::Kind::unfit,
                                      Answer::Kind::full, Answer::Kind::given_up}) {
      const std::string who = "person " + std::to_string(written);
      log.write(testing::request(kind, who), {answer, static_cast<std::int64_t>(40 + written), {}, "because " + who});
      const std::vector<json> all = lines();  // the log is open still
      ASSERT_EQ(all.size(), ++written) << "a line is not there when its command has been answered";
      const json& line = all.back();
      const bool accepted = answer == Answer::Kind::accepted;
      EXPECT_EQ(line["who"], who);
      EXPECT_EQ(line["command"], name);
      EXPECT_EQ(line["accepted"], accepted);
      EXPECT_FALSE(line.contains("dry_run"));
      EXPECT_EQ(line.contains("step"), accepted);
      EXPECT_EQ(line.contains("changes"), accepted);
      EXPECT_EQ(line.contains("reason"), !accepted);
      if (accepted) {
        EXPECT_EQ(line["step"], 39 + written);
        EXPECT_EQ(line["changes"], json::array());
      } else {
        EXPECT_EQ(line["reason"], "because " + who);
      }
    }
  }
}

TEST_F(Audit, ChangesWithTheirGroupsAndNumbers) {
  AuditLog log(path_);
  Request dry = testing::request(Kind::set);
  dry.dry_run = true;
  log.write(dry, {Answer::Kind::accepted,
                  5,
                  {{"matrices", "lr", std::numeric_limits<double>::quiet_NaN(), 0.1},
                   {"", "clip", 1.0 / 3, 2},
                   {"rest", "weight_decay", 0, 1e-9}},
                  {}});
  const json line = lines().at(0);
  EXPECT_EQ(line["dry_run"], true);
  EXPECT_EQ(line["step"], 5);
  EXPECT_EQ(line["changes"], json::parse(R"([{"name":"lr","from":null,"to":0.1,"group":"matrices"},
                                             {"name":"clip","from":0.3333333333333333,"to":2.0},
                                             {"name":"weight_decay","from":0.0,"to":1e-9,"group":"rest"}])"));
}

TEST_F(Audit, TheTimeIsNowInUtc) {
  AuditLog log(path_);
  const std::time_t before = std::time(nullptr);
  for (int i = 0; i < 20; ++i) log.write(testing::request(Kind::set), {});
  const std::time_t after = std::time(nullptr);
  std::string last;
  for (const json& line : lines()) {
    const std::string text = line["time"];
    std::tm parts{};
    const char* rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
    ASSERT_NE(rest, nullptr) << text;
    EXPECT_GE(::timegm(&parts), before) << text;
    EXPECT_LE(::timegm(&parts), after) << text;
    ASSERT_EQ(std::string(rest).size(), 5U) << text;  // .123Z
    EXPECT_EQ(rest[0], '.');
    EXPECT_EQ(rest[4], 'Z');
    EXPECT_GE(text, last) << "not in order, fractions included";
    last = text;
  }
}

TEST_F(Audit, ALaterJobAppends) {
  for (const char* who : {"first", "second"}) AuditLog(path_).write(testing::request(Kind::drain, who), {});
  ASSERT_EQ(lines().size(), 2U);
  EXPECT_EQ(lines()[0]["who"], "first");
  EXPECT_EQ(lines()[1]["who"], "second");
}

// What comes from outside can break neither a line nor the job.
TEST_F(Audit, AnyTextStaysOneLine) {
  AuditLog log(path_);
  const std::vector<std::string> texts{"a\nb",          "\xff\xfe", "\"},{\"accepted\":true", std::string("\0x", 2),
                                       "\r\n\t\x1b[2J", "\\"};
  for (const std::string& text : texts)
    log.write(testing::request(Kind::set, text), {Answer::Kind::refused, 0, {}, text});
  ASSERT_EQ(lines().size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (i != 1) {
      EXPECT_EQ(lines()[i]["who"], texts[i]);
    }
    EXPECT_EQ(lines()[i]["accepted"], false);
  }
}

TEST_F(Audit, APathThatDoesNotOpenIsRefusedByName) {
  for (const std::string& path : {path_ + "/no/such/folder", std::string("/"), ::testing::TempDir()}) {
    try {
      const AuditLog log(path);
      ADD_FAILURE() << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
    }
  }
}

// A command that was accepted is not taken back because the disk is full.
TEST_F(Audit, AFullDiskIsNoReasonToStop) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full, a file that is always full";
  AuditLog log("/dev/full");
  EXPECT_NO_THROW(log.write(testing::request(Kind::set), {}));
}

}  // namespace
}  // namespace regatta::control
