// The messages of DeviceLines: in the layout and order of LineExchange, so that ranks on CPUs and on devices understand
// one another.

#include <algorithm>
#include <numeric>

#include "runtime/engine/device_lines.h"

namespace regatta {

namespace cuda = kernels::cuda;
using kernels::LineSum;

namespace {

constexpr std::int64_t word = 4;
constexpr std::int64_t line_words = sizeof(LineSum) / word;

std::vector<std::int64_t> starts(const std::vector<std::int64_t>& bytes) {
  std::vector<std::int64_t> at(bytes.size());
  std::exclusive_scan(bytes.begin(), bytes.end(), at.begin(), std::int64_t{0});
  return at;
}

}  // namespace

std::vector<DeviceLines::Held> DeviceLines::held_shares(int round) {
  std::vector<Held> held;
  if (round >= std::ssize(plan_.rounds())) return held;
  for (const sharding::Share& share : plan_.rounds()[round]) {
    if (!std::binary_search(share.holders.begin(), share.holders.end(), rank_)) continue;
    const auto found = std::find_if(works_.begin(), works_.end(), [&](const LineWork& made) {
      const Work& work = *made.work;
      if (work.param != share.param || work.block != share.block) return false;
      return share.pass == std::ssize(work.passes) || work.passes[share.pass].contains(share.lines);
    });
    if (found == works_.end())
      throw Error(Code::invalid_argument, "no run of this rank touches the lines of a share it holds");
    const bool block = share.pass == std::ssize(found->passes);
    const PassLines* const lines = block ? nullptr : &found->work->passes[share.pass];
    held.push_back({&share, &*found, block, block ? 0 : share.lines.begin - lines->first, block ? 1 : lines->count,
                    block ? nullptr : &found->passes[share.pass]});
  }
  return held;
}

void DeviceLines::size_boxes(Round& round, std::span<const Held> held) const {
  const auto ranks = static_cast<std::size_t>(plan_.mesh().world_size());
  for (Box* box : {&round.partials, &round.answers}) {
    box->send_bytes.assign(ranks, 0);
    box->receive_bytes.assign(ranks, 0);
  }
  for (const Held& item : held) {
    const sharding::Share& share = *item.share;
    const std::int64_t partial = share.lines.size() * share.bytes_per_line,
                       answer = share.lines.size() * share.answer_bytes;
    if (share.owner != rank_) {
      round.partials.send_bytes[share.owner] += partial;
      round.answers.receive_bytes[share.owner] += answer;
      continue;
    }
    for (const int holder : share.holders) {
      if (holder == rank_) continue;
      round.partials.receive_bytes[holder] += partial;
      round.answers.send_bytes[holder] += answer;
    }
  }
  for (Box* box : {&round.partials, &round.answers}) {
    box->send_total = std::accumulate(box->send_bytes.begin(), box->send_bytes.end(), std::int64_t{0});
    box->receive_total = std::accumulate(box->receive_bytes.begin(), box->receive_bytes.end(), std::int64_t{0});
    box->send = Buffer(box->send_total, &device_);
    box->receive = Buffer(box->receive_total, &device_);
    if (direct_) continue;
    box->send_host = Buffer::pinned(box->send_total, device_);
    box->receive_host = Buffer::pinned(box->receive_total, device_);
  }
}

void DeviceLines::make_exchange(int index) {
  Round& round = rounds_[index];
  round.needed = index < std::ssize(plan_.rounds()) && !plan_.rounds()[index].empty();
  if (!round.needed) return;
  round.partials.label = "partial line sums, round " + std::to_string(index);
  round.answers.label = "finished lines, round " + std::to_string(index);
  const std::vector<Held> held = held_shares(index);
  size_boxes(round, held);

  std::vector<std::int64_t> send_at = starts(round.partials.send_bytes), take_at = starts(round.answers.receive_bytes);
  std::vector<cuda::CopyItem> pack, take;
  for (const Held& item : held) {
    const sharding::Share& share = *item.share;
    if (share.owner == rank_) continue;
    const std::int64_t lines = share.lines.size();
    std::int64_t& to = send_at[share.owner];
    std::int64_t& from = take_at[share.owner];
    if (item.block) {
      pack.push_back({item.work->block_sum, round.partials.send.data() + to, line_words});
    } else {
      for (int s = 0; s < item.work->work->passes[share.pass].stats_per_line; ++s)
        pack.push_back({item.pass->merged + s * item.count + item.offset,
                        round.partials.send.data() + to + s * lines * static_cast<std::int64_t>(sizeof(LineSum)),
                        lines * line_words});
    }
    void* const answer =
        item.block ? static_cast<void*>(item.work->block_value) : static_cast<void*>(item.pass->inverse + item.offset);
    take.push_back({round.answers.receive.data() + from, answer, lines * share.answer_bytes / word});
    to += lines * share.bytes_per_line;
    from += lines * share.answer_bytes;
  }
  add_copies(round.pack_partials, pack);
  add_copies(round.take, take);
  make_owner(round, held);
}

// The owner's side: its own sums and the others' merged, finished, and the answers packed for every holder.
void DeviceLines::make_owner(Round& round, std::span<const Held> held) {
  std::vector<std::int64_t> read = starts(round.partials.receive_bytes), write = starts(round.answers.send_bytes);
  std::vector<cuda::FinishItem> items;
  std::vector<cuda::BlockItem> blocks;
  std::vector<int> params;
  std::vector<cuda::CopyItem> answers;
  for (const Held& item : held) {
    const sharding::Share& share = *item.share;
    if (share.owner != rank_) continue;
    const std::int64_t lines = share.lines.size();
    std::vector<cuda::LineSource> sources;
    if (!item.block) sources.push_back({item.pass->merged + item.offset, 1, 0, item.count});
    const void* const answer = item.block ? static_cast<const void*>(item.work->block_value)
                                          : static_cast<const void*>(item.pass->inverse + item.offset);
    for (const int holder : share.holders) {
      if (holder == rank_) continue;
      sources.push_back({reinterpret_cast<const LineSum*>(round.partials.receive.data() + read[holder]), 1, 0, lines});
      answers.push_back({answer, round.answers.send.data() + write[holder], lines * share.answer_bytes / word});
      read[holder] += lines * share.bytes_per_line;
      write[holder] += lines * share.answer_bytes;
    }
    const Work& work = *item.work->work;
    if (item.block) {
      blocks.push_back({item.work->terms, work.passes.back().count, arena_.place(sources),
                        static_cast<std::int32_t>(sources.size()), 0, nullptr, item.work->block_value});
      continue;
    }
    cuda::FinishItem finish = finish_item(*item.work, share.pass, item.offset, lines);
    finish.sources = arena_.place(sources);
    finish.source_count = static_cast<std::int32_t>(sources.size());
    items.push_back(finish);
    params.push_back(counted(work));
  }
  add_finish(round.pack_answers, items, params);
  if (!blocks.empty()) {
    const cuda::BlockItem* const placed = arena_.place(blocks);
    round.pack_answers.push_back(
        {"the sums of blocks", [this, placed, count = std::ssize(blocks)](StreamHandle stream) {
           return device_.kernels().sum_blocks(placed, count, stream);
         }});
  }
  add_copies(round.pack_answers, answers);
}

bool DeviceLines::exchange_needed(int round) const { return round < std::ssize(rounds_) && rounds_[round].needed; }

// A transport of the host's memory gets a copy; only then the host waits for the device.
Ticket DeviceLines::send(Box& box, Transport& world, StreamHandle stream) {
  const auto bytes = [](const Buffer& buffer, std::int64_t count) {
    return std::span<std::byte>(buffer.data(), static_cast<std::size_t>(count));
  };
  if (!direct_) {
    device_.copy(box.send_host.data(), box.send.data(), box.send_total, stream);
    device_.synchronize(stream);
  } else if (world.device() == nullptr) {
    device_.synchronize(stream);
  }
  return world.exchange(bytes(direct_ ? box.send : box.send_host, box.send_total), box.send_bytes,
                        bytes(direct_ ? box.receive : box.receive_host, box.receive_total), box.receive_bytes,
                        box.label);
}

void DeviceLines::land(Box& box, StreamHandle stream) {
  if (!direct_) device_.copy(box.receive.data(), box.receive_host.data(), box.receive_total, stream);
}

Ticket DeviceLines::send_partials(int round, Transport& world, StreamHandle stream) {
  if (!exchange_needed(round)) return {};
  run_all(device_, rounds_[round].pack_partials, stream);
  return send(rounds_[round].partials, world, stream);
}

Ticket DeviceLines::send_answers(int round, Transport& world, StreamHandle stream) {
  if (!exchange_needed(round)) return {};
  land(rounds_[round].partials, stream);
  run_all(device_, rounds_[round].pack_answers, stream);
  return send(rounds_[round].answers, world, stream);
}

void DeviceLines::take_answers(int round, StreamHandle stream) {
  if (!exchange_needed(round)) return;
  land(rounds_[round].answers, stream);
  run_all(device_, rounds_[round].take, stream);
}

}  // namespace regatta
