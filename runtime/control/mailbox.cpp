#include "runtime/control/mailbox.h"

#include <algorithm>

namespace regatta::control {

Watcher::Got Watcher::next(StepFacts& facts, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [&] { return dropped_ || ended_ || !steps_.empty(); });
  if (dropped_) return Got::dropped;
  if (steps_.empty()) return ended_ ? Got::ended : Got::nothing;
  facts = *steps_.front();
  steps_.pop_front();
  return Got::step;
}

bool Watcher::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

Answer Mailbox::send(Request request, const std::function<bool()>& gone) {
  std::unique_lock lock(mutex_);
  if (closed_) return {Answer::Kind::unfit, 0, {}, *closed_};
  if (waiting_.size() >= most_requests)
    return {Answer::Kind::full, 0, {}, std::to_string(waiting_.size()) + " commands wait already; try again later"};
  const auto mine = std::make_shared<Waiting>();
  request.command.number = ++last_number_;
  mine->request = std::move(request);
  waiting_.push_back(mine);
  arrived_.notify_all();
  while (!mine->answer) {
    answered_.wait_for(lock, std::chrono::milliseconds(100));
    // Once the rank's thread has it, it may be on its way to the others and cannot be taken back.
    if (!mine->answer && !mine->taken && gone()) {
      mine->answer = {Answer::Kind::given_up, 0, {}, "the sender gave up; the command was not sent to the ranks"};
    }
  }
  std::erase(waiting_, mine);
  return *mine->answer;
}

std::shared_ptr<Watcher> Mailbox::watch() {
  const std::lock_guard lock(mutex_);
  std::erase_if(watchers_, [](const std::weak_ptr<Watcher>& watcher) { return watcher.expired(); });
  if (watchers_.size() >= most_watchers) return nullptr;
  auto watcher = std::make_shared<Watcher>();
  watcher->ended_ = closed_.has_value();
  watchers_.push_back(watcher);
  return watcher;
}

Mailbox::View Mailbox::view() const {
  const std::lock_guard lock(mutex_);
  View view = view_;
  view.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return view;
}

JobFacts Mailbox::job() const {
  const std::lock_guard lock(mutex_);
  return job_;
}

std::size_t Mailbox::waiting() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(std::count_if(
      waiting_.begin(), waiting_.end(), [](const std::shared_ptr<Waiting>& waiting) { return !waiting->answer; }));
}

std::size_t Mailbox::watching() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(std::count_if(
      watchers_.begin(), watchers_.end(), [](const std::weak_ptr<Watcher>& watcher) { return !watcher.expired(); }));
}

void Mailbox::start(JobFacts job) {
  const std::lock_guard lock(mutex_);
  job_ = std::move(job);
  view_.state = State::running;
}

void Mailbox::set_state(State state) {
  const std::lock_guard lock(mutex_);
  view_.state = state;
}

void Mailbox::set_groups(std::vector<GroupFacts> groups, double clip) {
  const std::lock_guard lock(mutex_);
  view_.groups = std::move(groups);
  view_.clip = clip;
}

std::optional<Request> Mailbox::take(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  const auto next = [&]() -> std::shared_ptr<Waiting> {
    for (const auto& waiting : waiting_)
      if (!waiting->taken && !waiting->answer) return waiting;
    return nullptr;
  };
  std::shared_ptr<Waiting> found = next();
  if (!found && patience.count() > 0) {
    arrived_.wait_for(lock, patience, [&] { return (found = next()) != nullptr; });
  }
  if (!found) return {};
  found->taken = true;
  return found->request;
}

void Mailbox::answer(std::uint64_t number, Answer answer) {
  const std::lock_guard lock(mutex_);
  for (const auto& waiting : waiting_)
    if (waiting->request.command.number == number && !waiting->answer) waiting->answer = std::move(answer);
  answered_.notify_all();
}

void Mailbox::publish(StepFacts facts) {
  const auto shared = std::make_shared<const StepFacts>(std::move(facts));
  std::vector<std::shared_ptr<Watcher>> readers;
  {
    const std::lock_guard lock(mutex_);
    view_.last = shared;
    for (const std::weak_ptr<Watcher>& weak : watchers_)
      if (auto watcher = weak.lock()) readers.push_back(std::move(watcher));
  }
  for (const std::shared_ptr<Watcher>& watcher : readers) {
    const std::lock_guard lock(watcher->mutex_);
    if (watcher->dropped_) continue;
    if (watcher->steps_.size() >= Watcher::capacity) {
      watcher->dropped_ = true;
      watcher->steps_.clear();
    } else {
      watcher->steps_.push_back(shared);
    }
    watcher->changed_.notify_all();
  }
}

void Mailbox::close(const std::string& sentence) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = sentence;
  view_.state = State::ended;
  for (const auto& waiting : waiting_)
    if (!waiting->answer) waiting->answer = {Answer::Kind::unfit, 0, {}, sentence};
  answered_.notify_all();
  for (const std::weak_ptr<Watcher>& weak : watchers_) {
    if (const auto watcher = weak.lock()) {
      const std::lock_guard inner(watcher->mutex_);
      watcher->ended_ = true;
      watcher->changed_.notify_all();
    }
  }
}

}  // namespace regatta::control
