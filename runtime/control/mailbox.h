#pragma once
// Between the threads that serve requests and the rank's thread that makes the steps: requests one way, facts about the
// job the other. Rank 0 has one. Thread-safe; bounded everywhere, so that no client can make the job wait or grow.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/command.h"
#include "runtime/engine/step_report.h"
#include "runtime/error.h"
#include "sharding/plan.h"

namespace regatta::control {

struct GroupFacts {
  std::string name;
  std::string rule;  ///< with all settings
  double lr_scale = 1;
};

struct StepFacts {
  std::int64_t step = 0;  ///< of the loop, from 1; counts skipped ones
  double loss = 0;
  double seconds = 0;
  double tokens_per_second = 0;
  StepReport report;
};

struct JobFacts {
  std::int64_t steps = 0;
  int world_size = 1;
  std::string mesh;
  std::vector<sharding::WireBytes> ranks;
  std::string plan_text;
  std::uint64_t fingerprint = 0;
};

enum class State { starting, running, paused, draining, ended };

struct Request {
  Command command;    ///< number is given by the mailbox, group by the receiver
  std::string group;  ///< by name; empty: all
  bool dry_run = false;
  std::string who;  ///< for the audit log
};

struct Answer {
  enum class Kind {
    accepted,
    refused,  ///< a value that cannot be
    unfit,    ///< does not fit the job's state
    full,     ///< too many requests wait
    given_up  ///< the sender went away before it was sent to the ranks
  };
  Kind kind = Kind::accepted;
  std::int64_t step = 0;  ///< from which it holds
  std::vector<SettingChange> changes;
  std::string sentence;  ///< why not
};

/// A reader of steps. One that lets `capacity` steps pile up is dropped.
class Watcher {
 public:
  static constexpr std::size_t capacity = 64;
  enum class Got { step, nothing, dropped, ended };
  Got next(StepFacts& facts, std::chrono::milliseconds patience);
  bool dropped() const;

 private:
  friend class Mailbox;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<const StepFacts>> steps_;
  bool dropped_ = false, ended_ = false;
};

class Mailbox {
 public:
  static constexpr std::size_t most_requests = 32;
  static constexpr std::size_t most_watchers = 32;

  // For the serving threads.

  /// Blocks until the job has answered, or `gone` says that nobody waits for it any more.
  Answer send(Request request, const std::function<bool()>& gone);
  /// Null when there are too many.
  std::shared_ptr<Watcher> watch();
  struct View {
    State state = State::starting;
    double seconds = 0;  ///< since the start
    double clip = 0;
    std::vector<GroupFacts> groups;
    std::shared_ptr<const StepFacts> last;
  };
  View view() const;
  JobFacts job() const;
  /// Requests that are not answered yet.
  std::size_t waiting() const;
  /// Watchers that are held by somebody.
  std::size_t watching() const;

  // For the rank's thread.

  void start(JobFacts job);
  void set_state(State state);
  void set_groups(std::vector<GroupFacts> groups, double clip);
  /// The next request, or nothing; waits up to `patience` for one.
  std::optional<Request> take(std::chrono::milliseconds patience = {});
  void answer(std::uint64_t number, Answer answer);
  void publish(StepFacts facts);
  /// Answers everything that waits or still comes with `sentence`.
  void close(const std::string& sentence);

 private:
  struct Waiting {
    Request request;
    bool taken = false;
    std::optional<Answer> answer;
  };

  mutable std::mutex mutex_;
  std::condition_variable arrived_, answered_;
  std::deque<std::shared_ptr<Waiting>> waiting_;
  std::uint64_t last_number_ = 0;
  std::optional<std::string> closed_;
  std::vector<std::weak_ptr<Watcher>> watchers_;
  JobFacts job_;
  View view_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace regatta::control
