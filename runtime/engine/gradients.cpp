#include "runtime/engine/gradients.h"

#include <algorithm>

namespace regatta {
Gradients::Gradients(const sharding::Plan& plan, int rank, Transport& dp_group, Settings settings, Arrays& arrays)
    : plan_(plan), rank_(rank), group_(dp_group), settings_(settings), arrays_(arrays) {
  const sharding::RankLayout& layout = plan.layout(rank);
  const std::size_t params = plan.params().size();
  added_.resize(params);
  parked_.resize(settings.reduce_each ? params : 0);
  figures_.resize(params);
  buckets_.resize(layout.buckets.size());

  std::int64_t largest = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    bucket.layout = &layout.buckets[b];
    bucket.label = "gradients of bucket " + std::to_string(b);
    // Several addends are kept in fp32; a single one travels as the trainer made it.
    bucket.wire =
        accumulates_before_reduction() ? DType::f32 : plan.params()[bucket.layout->entries.front().param].grad_dtype;
    for (std::int64_t bound : bucket.layout->bounds) bucket.bounds_bytes.push_back(bound * size_of(bucket.wire));
    largest = std::max(largest, bucket.layout->numel * size_of(bucket.wire));
    if (!settings.reduce_each) {
      bucket.slot = static_cast<int>(slots_.size());
      slots_.push_back(
          {arrays.allocate_shared(group_, bucket.layout->numel * size_of(bucket.wire)), {}, static_cast<int>(b)});
    }

    const Range chunk = bucket.layout->chunk(dp_group.rank());
    for (const sharding::BucketEntry& entry : bucket.layout->entries) {
      const Range mine = intersect(chunk, {entry.offset, entry.offset + entry.numel});
      if (!mine.empty()) bucket.segments.push_back({entry.param, mine.begin, mine.end});
    }
    const bool alone_and_kept = dp_group.world_size() == 1 && !settings.reduce_each;
    const bool in_place = !settings.reduce_each && bucket.wire == DType::f32;
    if (!alone_and_kept && !in_place) bucket.reduced = arrays.allocate(chunk.size() * 4);
    if (settings.micro_batches > 1) {
      if (settings.reduce_each) {
        bucket.incoming = arrays.allocate(chunk.size() * 4);
        bucket.accumulator =
            Accumulator(bucket.reduced.as<float>(), chunk.size(), settings.micro_batches, settings.tree, arrays);
      } else {
        bucket.accumulator = Accumulator(reinterpret_cast<float*>(slot_data(bucket)), bucket.layout->numel,
                                         settings.micro_batches, settings.tree, arrays);
      }
    }
  }
  std::size_t most_segments = 0;
  for (const Bucket& bucket : buckets_) most_segments = std::max(most_segments, bucket.segments.size());
  pieces_.resize(most_segments * static_cast<std::size_t>(dp_group.world_size()));
  sums_.reserve(most_segments);
  if (settings.reduce_each)
    for (int i = 0; i < staging_slots; ++i) slots_.push_back({arrays.allocate_shared(group_, largest), {}, -1});
  begin_step();
}

void Gradients::begin_step() {
  std::fill(added_.begin(), added_.end(), 0);
  std::fill(figures_.begin(), figures_.end(), Figures{});
  micro_batch_ = next_slot_ = next_launch_ = 0;
  busy_ns_ = 0;
  for (Bucket& bucket : buckets_)
    bucket.missing =
        static_cast<int>(bucket.layout->entries.size()) * (settings_.reduce_each ? 1 : settings_.micro_batches);
}

void Gradients::add(int param, const void* grad, DType dtype) {
  const int k = added_[param];
  if (k >= settings_.micro_batches)
    throw Error(Code::invalid_argument, "parameter " + plan_.params()[param].name + " got more than " +
                                            std::to_string(settings_.micro_batches) +
                                            " gradients in one step; call step() after each global batch");
  Bucket& bucket = buckets_[plan_.layout(rank_).params[param].bucket];
  if (dtype != bucket.wire && !accumulates_before_reduction())
    throw Error(Code::invalid_argument, "parameter " + plan_.params()[param].name + " got a gradient of " +
                                            std::string(name_of(dtype)) + "; expected " +
                                            std::string(name_of(bucket.wire)) + " (Param::grad_dtype)");
  if (settings_.reduce_each && k > micro_batch_) finish_micro_batch();
  added_[param] = k + 1;
  if (settings_.reduce_each) {
    take_slots();
    launch_full();
    if (bucket.slot < 0) {
      const std::int64_t bytes = plan_.layout(rank_).params[param].numel * size_of(dtype);
      Parked& parked = parked_[param];
      if (parked.memory.bytes() < bytes) parked.memory = arrays_.allocate(bytes);
      if (bytes > 0) arrays_.copy(parked.memory.data(), grad, bytes);
      parked.filled = true;
      --bucket.missing;
      return;
    }
  }
  put(bucket, param, k, grad, dtype);
  --bucket.missing;
  launch_full();
}

void Gradients::put(Bucket& bucket, int param, int k, const void* grad, DType dtype) {
  const sharding::ParamLocation& at = plan_.layout(rank_).params[param];
  if (at.numel == 0) return;  // an empty shard, whose gradient may be a null pointer
  if (accumulates_before_reduction()) return bucket.accumulator.add(k, at.offset, grad, dtype, at.numel);
  arrays_.copy(slot_data(bucket) + at.offset * size_of(bucket.wire), grad, at.numel * size_of(dtype));
}

// zero2: buckets take slots strictly in plan order, so the oldest bucket always has one and nothing can deadlock. A
// slot whose bucket is on its way is waited for rather than passed over when it is still busy: what is launched when
// must not depend on timing, or ranks that use the transport for other things in between would queue their collectives
// in different orders.
void Gradients::take_slots() {
  for (; next_slot_ < static_cast<int>(buckets_.size()); ++next_slot_) {
    Slot& oldest = *std::min_element(slots_.begin(), slots_.end(),
                                     [](const Slot& a, const Slot& b) { return a.bucket < b.bucket; });
    if (oldest.bucket >= next_launch_) return;  // still filling
    free_slot(oldest);
    Bucket& bucket = buckets_[next_slot_];
    oldest.bucket = next_slot_;
    bucket.slot = static_cast<int>(&oldest - slots_.data());
    for (const sharding::BucketEntry& entry : bucket.layout->entries)
      if (Parked& parked = parked_[entry.param]; parked.filled) {
        put(bucket, entry.param, micro_batch_, parked.memory.data(), bucket.wire);
        parked.filled = false;
      }
  }
}

void Gradients::free_slot(Slot& slot) {
  if (slot.bucket < 0) return;
  slot.ticket.wait();
  busy_ns_ += slot.ticket.busy_ns();
  buckets_[slot.bucket].slot = -1;
  slot = {slot.memory, {}, -1};
}

void Gradients::launch_full() {
  while (next_launch_ < static_cast<int>(buckets_.size()) && buckets_[next_launch_].missing == 0 &&
         buckets_[next_launch_].slot >= 0)
    launch(next_launch_++);
}

void Gradients::launch(int index) {
  Bucket& bucket = buckets_[index];
  if (accumulates_before_reduction())
    for (const sharding::BucketEntry& entry : bucket.layout->entries)
      bucket.accumulator.fold(added_[entry.param], entry.offset, entry.numel);
  bucket.reducing = micro_batch_;
  slots_[bucket.slot].ticket = group_.reduce_scatter(
      slots_[bucket.slot].memory, 0, bucket.bounds_bytes,
      [this, &bucket](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
        reduce(bucket, pieces, begin, end);
      },
      bucket.label, bucket.wire);
}

// Parameters that got no gradient in this reduction count as zero.
void Gradients::finish_micro_batch() {
  const int expected = settings_.reduce_each ? micro_batch_ + 1 : settings_.micro_batches;
  while (next_launch_ < static_cast<int>(buckets_.size())) {
    if (settings_.reduce_each) take_slots();
    Bucket& bucket = buckets_[next_launch_];
    for (const sharding::BucketEntry& entry : bucket.layout->entries) {
      if (added_[entry.param] >= expected) continue;
      if (settings_.reduce_each) added_[entry.param] = expected;
      if (!accumulates_before_reduction())
        arrays_.zero(slot_data(bucket) + entry.offset * size_of(bucket.wire), entry.numel * size_of(bucket.wire));
    }
    bucket.missing = 0;
    launch_full();
  }
  if (!settings_.reduce_each) return;
  for (Slot& slot : slots_) free_slot(slot);
  if (++micro_batch_ < settings_.micro_batches) {
    next_slot_ = next_launch_ = 0;
    for (Bucket& bucket : buckets_) bucket.missing = static_cast<int>(bucket.layout->entries.size());
  }
}

void Gradients::finish() {
  if (settings_.reduce_each) {
    while (micro_batch_ < settings_.micro_batches) finish_micro_batch();
  } else {
    finish_micro_batch();
    for (Slot& slot : slots_) {
      slot.ticket.wait();
      busy_ns_ += slot.ticket.busy_ns();
    }
  }
  arrays_.finish(figures_);
}

// On the communication thread: [begin, end) bytes of the bucket, a part of this rank's chunk.
void Gradients::reduce(Bucket& bucket, std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
  const Arrays::Reduction reduction(arrays_);
  const std::int64_t size = size_of(bucket.wire);
  const Range range{begin / size, end / size};
  const std::int64_t chunk_begin = bucket.layout->chunk(group_.rank()).begin;
  const std::size_t count = pieces.size();
  const bool adds_up = bucket.incoming.data() != nullptr;  // with other micro-batches
  sums_.clear();
  for (const Segment& segment : bucket.segments) {
    const Range here = intersect(range, {segment.begin, segment.end});
    if (here.empty()) continue;
    const void** const here_of = pieces_.data() + count * sums_.size();
    for (std::size_t i = 0; i < count; ++i) here_of[i] = pieces[i] + (here.begin - range.begin) * size;
    float* out = nullptr;
    if (adds_up) {
      out = bucket.incoming.as<float>() + (here.begin - chunk_begin);
    } else if (bucket.reduced.data() != nullptr) {
      out = bucket.reduced.as<float>() + (here.begin - chunk_begin);
    } else if (group_.world_size() > 1) {  // the slot itself keeps the sum; one rank has nothing to add
      out = reinterpret_cast<float*>(slot_data(bucket)) + here.begin;
    }
    sums_.push_back({{here_of, count}, here.size(), out, adds_up ? nullptr : &figures_[segment.param]});
  }
  arrays_.reduce_trees(sums_, bucket.wire);
  if (!adds_up) return;

  const Range here{range.begin - chunk_begin, range.end - chunk_begin};
  bucket.accumulator.add(bucket.reducing, here.begin, bucket.incoming.as<float>() + here.begin, DType::f32,
                         here.size());
  if (bucket.reducing + 1 < settings_.micro_batches) return;
  bucket.accumulator.fold(settings_.micro_batches, here.begin, here.size());
  sums_.clear();
  for (const Segment& segment : bucket.segments) {
    const Range of_param = intersect(range, {segment.begin, segment.end});
    if (of_param.empty()) continue;
    const void** const total = pieces_.data() + sums_.size();
    *total = bucket.reduced.as<float>() + (of_param.begin - chunk_begin);
    sums_.push_back({{total, 1}, of_param.size(), nullptr, &figures_[segment.param]});
  }
  arrays_.reduce_trees(sums_, DType::f32);
}

Gradients::Reduced Gradients::reduced(int index) const {
  const Bucket& bucket = buckets_[index];
  if (bucket.reduced.data() != nullptr) return {bucket.reduced.data(), DType::f32};
  if (bucket.slot < 0) return {};
  return {slot_data(bucket) + bucket.bounds_bytes[group_.rank()], bucket.wire};
}

std::int64_t Gradients::bytes() const {
  std::int64_t bytes = 0;
  for (const Slot& slot : slots_) bytes += slot.memory.bytes();
  for (const Bucket& bucket : buckets_)
    bytes += bucket.reduced.bytes() + bucket.incoming.bytes() + bucket.accumulator.bytes();
  return bytes;
}

}  // namespace regatta
