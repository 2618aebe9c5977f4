#pragma once
// What every transport must do when something fails, as bodies that each rank of two or more runs on a transport of its
// own, which is dead afterwards. A body throws when something is wrong, and returns when the other ranks no longer need
// this one. `meet` is a meeting of all ranks by other means than the transport: a rank that has come through a barrier
// of the transport may fail while others are still in it, which then rightly fails there.

#include <barrier>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/transport/transport_checks.h"

namespace regatta::testing {

inline constexpr std::chrono::milliseconds generous_deadline{120'000};
/// Of cases whose subject is the deadline; what comes before it takes milliseconds.
inline constexpr std::chrono::milliseconds short_deadline{3'000};

/// Calls the body and requires an Error whose whole sentence is `sentence`.
template <class Body>
void require_exactly(Code code, const std::string& sentence, Body&& body) {
  require_error(code, sentence, [&] {
    try {
      body();
    } catch (const Error& error) {
      require(error.what() == sentence, "expected '" + sentence + "', got: " + error.what());
      throw;
    }
  });
}

inline void await_failures(Transport& t, const std::vector<int>& ranks) {
  await("all to know of the failures", [&] {
    const std::vector<PeerStatus> peers = t.peers();
    return std::all_of(ranks.begin(), ranks.end(), [&](int r) { return peers[r].state == PeerStatus::State::failed; });
  });
}

using Meet = std::function<void()>;

inline std::vector<int> all_ranks(const Transport& t) {
  std::vector<int> everyone(static_cast<std::size_t>(t.world_size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  return everyone;
}

/// A call of each kind that moves data among all ranks, waited for. What it uses must be there before the failure.
struct EveryCall {
  explicit EveryCall(Transport& t)
      : transport(t),
        buffer(t.allocate(64 * t.world_size())),
        eight(static_cast<std::size_t>(t.world_size()), 8),
        send(8 * eight.size()),
        receive(8 * eight.size()),
        everyone(all_ranks(t)) {
    for (int r = 0; r <= t.world_size(); ++r) bounds.push_back(64 * r);
  }

  /// Of collectives; the broadcast is the last rank's.
  std::vector<std::pair<std::string, std::function<void()>>> collectives(std::string_view label) {
    Transport& t = transport;
    const int last = t.world_size() - 1;
    return {{"reduce_scatter",
             [=, this, &t] {
               t.reduce_scatter(
                    buffer, 0, bounds, [](auto, auto, auto) {}, label)
                   .wait();
             }},
            {"all_gather", [=, this, &t] { t.all_gather(buffer, 0, bounds, label).wait(); }},
            {"exchange", [=, this, &t] { t.exchange(send, eight, receive, eight, label).wait(); }},
            {"all_gather_small",
             [=, this, &t] { t.all_gather_small(std::span(send).first(8), receive, eight, label).wait(); }},
            {"broadcast", [=, this, &t] { t.broadcast(receive, last, label).wait(); }},
            {"barrier", [=, &t] { t.barrier(label); }}};
  }

  Transport& transport;
  SymmetricBuffer buffer;
  std::vector<std::int64_t> bounds, eight;
  std::vector<std::byte> send, receive;
  std::vector<int> everyone;
};

/// The last rank aborts; all calls of all ranks answer with its reason, and everybody knows who failed first and why.
inline void an_abort_answers_every_call(Transport& t, const Meet& meet) {
  const int culprit = t.world_size() - 1;
  EveryCall every(t);
  t.barrier("together");
  meet();
  const TransportCounters before = t.counters();
  if (t.rank() == culprit) {
    t.abort("disk full: /out", Code::checkpoint);
    t.abort("only the first reason stands", Code::device, true);
  }
  const std::string sentence =
      (t.rank() == culprit ? "this rank" : "rank " + std::to_string(culprit)) + " stopped: disk full: /out";
  await_failures(t, {culprit});
  auto calls = every.collectives("step 7");
  calls.push_back({"gather_strings", [&] { t.gather_strings("x", "step 7"); }});
  calls.push_back({"allocate", [&] { t.allocate(64); }});
  calls.push_back({"split", [&] { t.split(every.everyone); }});
  for (int round = 0; round < 2; ++round)
    for (const auto& [kind, call] : calls) require_exactly(Code::aborted, sentence, call);
  const TransportCounters& after = t.counters();
  require(after.all_gather.calls == before.all_gather.calls && after.exchange.calls == before.exchange.calls &&
              after.all_gather_small.calls == before.all_gather_small.calls &&
              after.broadcast.calls == before.broadcast.calls &&
              after.total_bytes() - before.total_bytes() <= 64 * culprit,
          "calls that were not made are not counted");
  await_failures(t, every.everyone);
  const std::vector<PeerStatus> peers = t.peers();
  for (int r = 0; r < t.world_size(); ++r) {
    const std::string who = "status of rank " + std::to_string(r) + ": " + peers[r].reason;
    if (r == culprit) {
      require(peers[r].code == Code::checkpoint && !peers[r].secondary && peers[r].reason == "disk full: /out", who);
    } else {
      const std::string passed_on = "rank " + std::to_string(culprit) + " stopped: disk full: /out";
      require(peers[r].code == Code::aborted && peers[r].secondary && peers[r].reason == passed_on, who);
    }
  }
  t.leave();
  await("all to have left", [&] {
    const std::vector<PeerStatus> now = t.peers();
    return std::all_of(now.begin(), now.end(), [](const PeerStatus& p) { return p.closed; });
  });
  require(t.peers()[culprit].state == PeerStatus::State::failed, "who failed and left has failed");
}

/// Rank 0 only passes on what rank 2 says; ranks 1 and 2 both fail by themselves. All ranks name rank 1.
inline void the_first_culprit_is_named_by_all(Transport& t, const Meet& meet) {
  if (t.world_size() < 3) return;
  t.barrier("together");
  meet();
  if (t.rank() == 0) t.abort("rank 2 stopped: two", Code::aborted, true);
  if (t.rank() == 1) t.abort("one", Code::device);
  if (t.rank() == 2) t.abort("two", Code::checkpoint);
  await_failures(t, {0, 1, 2});
  require_exactly(Code::aborted, t.rank() == 1 ? "this rank stopped: one" : "rank 1 stopped: one",
                  [&] { t.barrier("step 7"); });
  const std::vector<PeerStatus> peers = t.peers();
  require(peers[0].secondary && !peers[1].secondary && !peers[2].secondary, "who began");
  require(peers[1].code == Code::device && peers[2].code == Code::checkpoint, "codes");
}

inline void a_reason_that_is_passed_on_stays_as_it_is(Transport& t, const Meet& meet) {
  t.barrier("together");
  meet();
  if (t.rank() == 1) t.abort("rank 5 stopped: elsewhere", Code::aborted, true);
  await_failures(t, {1});
  require_exactly(Code::aborted, "rank 5 stopped: elsewhere", [&] { t.barrier("step 7"); });
}

/// Reasons longer than there is room for are cut, not lost.
inline void long_reasons_are_cut(Transport& t, const Meet& meet) {
  std::string reason;
  for (int i = 0; i < 300; ++i) reason += std::to_string(i) + " ";
  const std::string cut = reason.substr(0, 495);
  t.barrier("together");
  meet();
  if (t.rank() == 0) t.abort(reason, Code::device);
  await_failures(t, {0});
  require(t.peers()[0].reason == cut, "the reason arrives as far as there is room: " + t.peers()[0].reason);
  require_exactly(Code::aborted, (t.rank() == 0 ? "this rank stopped: " : "rank 0 stopped: ") + cut,
                  [&] { t.barrier("step 7"); });
}

/// What was done before stays done, what comes after fails; the code is the reducer's.
inline void a_reducers_error_keeps_its_code(Transport& t, const Meet& meet) {
  const int culprit = t.world_size() - 1;
  EveryCall every(t);
  std::vector<int> value{t.rank() == 0 ? 11 : 0};
  const Ticket good = t.broadcast(writable_bytes_of(value), 0, "before");
  good.wait();
  meet();
  const auto reduce = [&](auto, auto, auto) {
    if (t.rank() == culprit) throw Error(Code::non_finite, "NaN in W");
  };
  const std::string passed_on = "rank " + std::to_string(culprit) + " stopped: NaN in W";
  if (t.rank() == culprit) {
    std::optional<Ticket> bad, later;
    try {
      bad = t.reduce_scatter(every.buffer, 0, every.bounds, reduce, "gradients");
      later = t.broadcast(every.receive, culprit, "later");
    } catch (const Error& error) {
      require(error.what() == std::string("NaN in W"), error.what());
    }
    for (const std::optional<Ticket>& ticket : {bad, later})
      if (ticket) require_exactly(Code::non_finite, "NaN in W", [&] { ticket->wait(); });
    require(bad.has_value() != t.runs_on_stream(), "on a stream the call itself throws, elsewhere its ticket");
    for (const auto& [kind, call] : every.collectives("after")) require_exactly(Code::non_finite, "NaN in W", call);
  } else {
    // With messages the others may be done before they hear of it.
    try {
      t.reduce_scatter(every.buffer, 0, every.bounds, reduce, "gradients").wait();
      await_failures(t, {culprit});
      t.barrier("after");
      throw std::logic_error("nothing was thrown");
    } catch (const Error& error) {
      require(error.code() == Code::aborted && error.what() == passed_on, error.what());
    }
  }
  await_failures(t, all_ranks(t));
  require(t.peers()[culprit].code == Code::non_finite && !t.peers()[culprit].secondary, "the culprit's code");
  good.wait();
  require(good.done() && value[0] == 11, "what was done before stays done");
}

inline void counts_that_disagree_are_told(Transport& t, const Meet& meet, std::int64_t sent, std::int64_t expected) {
  std::vector<std::byte> send(static_cast<std::size_t>(t.rank() == 0 ? sent : 0)),
      receive(static_cast<std::size_t>(t.rank() == 1 ? expected : 0));
  std::vector<std::int64_t> give(static_cast<std::size_t>(t.world_size()), 0), take = give;
  if (t.rank() == 0) give[1] = sent;
  if (t.rank() == 1) take[0] = expected;
  meet();
  std::string sentence;
  try {
    t.exchange(send, give, receive, take, "line sums").wait();
    t.barrier("after");
  } catch (const Error& error) {
    sentence = error.what();
  }
  const auto says = [&](const std::string& part) {
    require(sentence.find(part) != std::string::npos, "expected '" + part + "' in: " + sentence);
  };
  says("exchange 'line sums': rank 0 sends ");
  says(std::to_string(expected));
  says("rank 1 expects");
  if (t.rank() != 1) says("rank 1 stopped: ");
  await_failures(t, all_ranks(t));
  require(t.peers()[1].code == Code::invalid_argument && !t.peers()[1].secondary, "whose mistake it is");
}
inline void fewer_bytes_than_expected_are_told(Transport& t, const Meet& meet) {
  counts_that_disagree_are_told(t, meet, 8, 12);
}
inline void more_bytes_than_expected_are_told(Transport& t, const Meet& meet) {
  counts_that_disagree_are_told(t, meet, 800, 5);
}

/// Ranks that call two groups in different orders get the right bytes or an error, never the other group's.
inline void no_group_gets_anothers_message(Transport& t, const Meet& meet) {
  const std::vector<int> everyone = all_ranks(t);
  const std::unique_ptr<Transport> a = t.split(everyone), b = t.split(everyone);
  meet();
  std::vector<std::int64_t> give(everyone.size(), 0), take = give;
  if (t.rank() == 0) give[1] = 8;
  if (t.rank() == 1) take[0] = 8;
  for (Transport* const group : t.rank() == 1 ? std::vector{b.get(), a.get()} : std::vector{a.get(), b.get()}) {
    const std::byte value{static_cast<unsigned char>(group == a.get() ? 'a' : 'b')};
    const std::vector<std::byte> send(t.rank() == 0 ? 8 : 0, value);
    std::vector<std::byte> receive(t.rank() == 1 ? 8 : 0);
    group->exchange(send, give, receive, take, "of a group").wait();
    require(std::all_of(receive.begin(), receive.end(), [&](std::byte v) { return v == value; }),
            "another group's bytes");
  }
  t.barrier("all have seen");
}

/// In a reduce-scatter of many tiles all ranks soon hang on the one that does not come: it is the one that is named.
inline void the_rank_that_does_not_come_is_the_one_named(Transport& t, const Meet& meet) {
  const int absent = t.world_size() - 1;
  const std::vector<std::int64_t> bounds =
      byte_bounds(std::vector<std::int64_t>(static_cast<std::size_t>(t.world_size()), 9 << 18));
  const SymmetricBuffer buffer = t.allocate(bounds.back());
  std::vector<int> others = all_ranks(t);
  others.pop_back();
  meet();
  if (t.rank() != absent) {
    std::string sentence;
    Code code = Code::device;
    try {
      t.reduce_scatter(
           buffer, 0, bounds, [](auto, auto, auto) {}, "gradients of bucket 3")
          .wait();
    } catch (const Error& error) {
      sentence = error.what();
      code = error.code();
    }
    require(code == Code::timeout || code == Code::aborted, "code of: " + sentence);
    const std::string end =
        "reduce_scatter 'gradients of bucket 3' did not complete within the deadline of 3 s: rank " +
        std::to_string(absent) + " did not arrive";
    require(sentence.size() >= end.size() && sentence.substr(sentence.size() - end.size()) == end, sentence);
  }
  await_failures(t, others);
}

/// The meeting of ranks that are threads. One that throws must not be waited for.
class ThreadsMeet {
 public:
  explicit ThreadsMeet(int ranks) : barrier_(ranks) {}
  void run(Transport& t, void (*body)(Transport&, const Meet&)) {
    try {
      body(t, [this] { barrier_.arrive_and_wait(); });
    } catch (...) {
      barrier_.arrive_and_drop();
      throw;
    }
  }

 private:
  std::barrier<> barrier_;
};

struct FailureCase {
  const char* name;
  void (*body)(Transport&, const Meet&);
  std::chrono::milliseconds deadline = generous_deadline;
};

/// Of all transports; the next ones of those that run on no stream, whose library does not tell so much.
inline constexpr FailureCase failure_cases[] = {
    {"AnAbortAnswersEveryCall", an_abort_answers_every_call},
    {"TheFirstCulpritIsNamedByAll", the_first_culprit_is_named_by_all},
    {"AReasonThatIsPassedOnStaysAsItIs", a_reason_that_is_passed_on_stays_as_it_is},
    {"LongReasonsAreCut", long_reasons_are_cut},
    {"AReducersErrorKeepsItsCode", a_reducers_error_keeps_its_code},
};
inline constexpr FailureCase host_failure_cases[] = {
    {"FewerBytesThanExpectedAreTold", fewer_bytes_than_expected_are_told},
    {"MoreBytesThanExpectedAreTold", more_bytes_than_expected_are_told},
    {"NoGroupGetsAnothersMessage", no_group_gets_anothers_message},
    {"TheRankThatDoesNotComeIsTheOneNamed", the_rank_that_does_not_come_is_the_one_named, short_deadline},
};

}  // namespace regatta::testing
