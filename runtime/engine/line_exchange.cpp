#include "runtime/engine/line_exchange.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace regatta {

using kernels::LineSum;

void LineExchange::Outbox::size(int world) {
  send_bytes.resize(world);
  receive_bytes.resize(world);
}

LineExchange::LineExchange(const sharding::Plan& plan, int round, int rank, std::span<Work> works,
                           std::span<const Rule* const> rule_of_param)
    : rank_(rank),
      partials_label_("partial line sums, round " + std::to_string(round)),
      answers_label_("finished lines, round " + std::to_string(round)) {
  const int world = plan.mesh().world_size();
  partials_.size(world);
  answers_.size(world);
  cursor_.resize(world);
  write_.resize(world);
  if (round >= static_cast<int>(plan.rounds().size())) return;
  needed_ = !plan.rounds()[round].empty();

  std::size_t widest = 0, widest_answer = 0;
  for (const sharding::Share& share : plan.rounds()[round]) {
    if (!std::binary_search(share.holders.begin(), share.holders.end(), rank)) continue;
    const auto work = std::find_if(works.begin(), works.end(), [&](const Work& w) {
      if (w.param != share.param || w.block != share.block || w.one_sweep) return false;
      return share.pass == static_cast<int>(w.passes.size()) || w.passes[share.pass].contains(share.lines);
    });
    if (work == works.end())
      throw Error(Code::invalid_argument, "no run of this rank touches the lines of a share it holds");
    const bool block = share.pass == static_cast<int>(work->passes.size());
    items_.push_back({&share, &*work, block ? 0 : share.lines.begin - work->passes[share.pass].first});

    const std::int64_t partial = share.lines.size() * share.bytes_per_line,
                       answer = share.lines.size() * share.answer_bytes;
    if (share.owner == rank) {
      for (int holder : share.holders)
        if (holder != rank) {
          partials_.receive_bytes[holder] += partial;
          answers_.send_bytes[holder] += answer;
        }
      widest = std::max(widest, static_cast<std::size_t>(partial) / sizeof(LineSum));
      widest_answer = std::max(widest_answer, static_cast<std::size_t>(answer));
    } else {
      partials_.send_bytes[share.owner] += partial;
      answers_.receive_bytes[share.owner] += answer;
    }
  }
  for (Outbox* box : {&partials_, &answers_}) {
    box->send.resize(std::accumulate(box->send_bytes.begin(), box->send_bytes.end(), std::int64_t{0}));
    box->receive.resize(std::accumulate(box->receive_bytes.begin(), box->receive_bytes.end(), std::int64_t{0}));
  }
  merged_.resize(widest);
  finished_.resize(widest_answer);
  set_rules(rule_of_param);
}

void LineExchange::set_rules(std::span<const Rule* const> rule_of_param) {
  rules_.clear();
  for (const Item& item : items_) rules_.push_back(rule_of_param[item.share->param]);
}

void LineExchange::pack_partials(const Item& item, std::byte* to) const {
  const Work& work = *item.work;
  if (is_block(item)) {
    std::memcpy(to, &work.block_terms, sizeof(LineSum));
    return;
  }
  const PassLines& lines = work.passes[item.share->pass];
  const std::size_t bytes = item.share->lines.size() * sizeof(LineSum);
  for (int s = 0; s < lines.stats_per_line; ++s)
    std::memcpy(to + s * bytes, &lines.stats[s * lines.count + item.offset], bytes);
}

Ticket LineExchange::send_partials(Transport& world) {
  if (!needed_) return {};
  std::exclusive_scan(partials_.send_bytes.begin(), partials_.send_bytes.end(), cursor_.begin(), std::int64_t{0});
  for (const Item& item : items_) {
    if (item.share->owner == rank_) continue;
    std::int64_t& at = cursor_[item.share->owner];
    pack_partials(item, partials_.send.data() + at);
    at += item.share->lines.size() * item.share->bytes_per_line;
  }
  return world.exchange(partials_.send, partials_.send_bytes, partials_.receive, partials_.receive_bytes,
                        partials_label_);
}

// `merged_` holds the whole statistics of the item's lines; leaves the answers in `finished_` and in the work.
void LineExchange::finish_owned(const Item& item) {
  Work& work = *item.work;
  const Rule& rule = *rules_[&item - items_.data()];
  if (is_block(item)) {
    work.block_sum = kernels::value(merged_[0]);
    std::memcpy(finished_.data(), &work.block_sum, sizeof(double));
    return;
  }
  PassLines& lines = work.passes[item.share->pass];
  const std::int64_t count = item.share->lines.size();
  LineSum stats[4];
  for (std::int64_t i = 0; i < count; ++i) {
    for (int s = 0; s < lines.stats_per_line; ++s) stats[s] = merged_[s * count + i];
    lines.inverse[item.offset + i] =
        finish_line(work, rule, item.share->pass, {stats, static_cast<std::size_t>(lines.stats_per_line)});
  }
  std::memcpy(finished_.data(), &lines.inverse[item.offset], count * sizeof(float));
}

Ticket LineExchange::send_answers(Transport& world) {
  if (!needed_) return {};
  std::vector<std::int64_t>& read = cursor_;
  std::exclusive_scan(partials_.receive_bytes.begin(), partials_.receive_bytes.end(), read.begin(), std::int64_t{0});
  std::exclusive_scan(answers_.send_bytes.begin(), answers_.send_bytes.end(), write_.begin(), std::int64_t{0});
  for (const Item& item : items_) {
    if (item.share->owner != rank_) continue;
    const std::int64_t partial = item.share->lines.size() * item.share->bytes_per_line;
    const std::int64_t answer = item.share->lines.size() * item.share->answer_bytes;
    pack_partials(item, reinterpret_cast<std::byte*>(merged_.data()));
    for (int holder : item.share->holders) {
      if (holder == rank_) continue;
      for (std::int64_t i = 0; i < partial / static_cast<std::int64_t>(sizeof(LineSum)); ++i) {
        LineSum part;
        std::memcpy(&part, partials_.receive.data() + read[holder] + i * sizeof(LineSum), sizeof(LineSum));
        kernels::merge(merged_[i], part);
      }
      read[holder] += partial;
    }
    finish_owned(item);
    for (int holder : item.share->holders) {
      if (holder == rank_) continue;
      std::memcpy(answers_.send.data() + write_[holder], finished_.data(), answer);
      write_[holder] += answer;
    }
  }
  return world.exchange(answers_.send, answers_.send_bytes, answers_.receive, answers_.receive_bytes, answers_label_);
}

void LineExchange::take_answers() {
  if (!needed_) return;
  std::exclusive_scan(answers_.receive_bytes.begin(), answers_.receive_bytes.end(), cursor_.begin(), std::int64_t{0});
  for (const Item& item : items_) {
    if (item.share->owner == rank_) continue;
    const std::int64_t bytes = item.share->lines.size() * item.share->answer_bytes;
    std::int64_t& at = cursor_[item.share->owner];
    void* to = is_block(item) ? static_cast<void*>(&item.work->block_sum)
                              : &item.work->passes[item.share->pass].inverse[item.offset];
    std::memcpy(to, answers_.receive.data() + at, bytes);
    at += bytes;
  }
}

}  // namespace regatta
