#include "runtime/engine/matrix_exchange.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "sharding/reshard.h"

namespace regatta {

using kernels::LineSum;
using kernels::WholeSum;
using sharding::MatrixShare;
using sharding::View;

namespace {

std::int64_t total(std::span<const std::int64_t> bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0});
}

void grow(std::vector<std::byte>& buffer, std::int64_t bytes) {
  if (std::ssize(buffer) < bytes) buffer.resize(static_cast<std::size_t>(bytes));
}
template <class T>
void grow_values(std::vector<T>& values, std::int64_t count) {
  if (std::ssize(values) < count) values.resize(static_cast<std::size_t>(count));
}

// Reads and writes a message section by section; its sections are not aligned for what is in them.
template <class Byte>
class Cursor {
 public:
  explicit Cursor(Byte* at) : at_(at) {}
  Byte* skip(std::int64_t bytes) { return std::exchange(at_, at_ + bytes); }

 private:
  Byte* at_;
};

// Sums per line of a matrix or part: so many arrays one after another.
std::int64_t arrays(std::int64_t bytes_per_line, std::int64_t bytes_per_sum) { return bytes_per_line / bytes_per_sum; }

// Merges sums of lines [first, first + count) of a message into those of the whole.
template <class Sum>
void merge_sums(const std::byte* from, std::int64_t array_count, std::int64_t first, std::int64_t count,
                std::span<Sum> whole) {
  const std::int64_t lines = array_count == 0 ? 0 : std::ssize(whole) / array_count;
  for (std::int64_t a = 0; a < array_count; ++a)
    for (std::int64_t line = 0; line < count; ++line) {
      Sum part;
      std::memcpy(&part, from + (a * count + line) * static_cast<std::int64_t>(sizeof(Sum)), sizeof(Sum));
      kernels::merge(whole[a * lines + first + line], part);
    }
}

template <class T>
std::span<T> cleared(std::vector<T>& values, std::int64_t count) {
  std::fill_n(values.begin(), count, T{});
  return {values.data(), static_cast<std::size_t>(count)};
}

}  // namespace

MatrixExchange::MatrixExchange(const sharding::Plan& plan, int wave, int rank, std::span<Work> works,
                               std::span<const Rule* const> rule_of_param,
                               std::span<const std::span<float* const>> states, MatrixStaging& staging,
                               MatrixScratch& scratch)
    : rank_(rank),
      rules_(rule_of_param),
      staging_(staging),
      scratch_(scratch),
      directions_label_("directions to matrix owners, wave " + std::to_string(wave)),
      updates_label_("updates from matrix owners, wave " + std::to_string(wave)) {
  lay_out(plan, wave, works, states);
  size_buffers(plan, scratch);
}

// Two rounds over the wave: first how much goes where, then where each part begins.
void MatrixExchange::lay_out(const sharding::Plan& plan, int wave, std::span<Work> works,
                             std::span<const std::span<float* const>> states) {
  const auto world = static_cast<std::size_t>(plan.mesh().world_size());
  for (Counts* counts : {&direction_bytes_, &update_bytes_}) {
    counts->send.resize(world);
    counts->receive.resize(world);
  }
  std::vector<std::int64_t> to, from, updates_to, updates_from;  // cursors, by rank
  std::int64_t own_gathered = 0, own_returned = 0;
  for (const bool placing : {false, true}) {
    if (placing) {
      const auto begins = [](const std::vector<std::int64_t>& bytes, std::vector<std::int64_t>& at) {
        at.resize(bytes.size());
        std::exclusive_scan(bytes.begin(), bytes.end(), at.begin(), std::int64_t{0});
      };
      begins(direction_bytes_.send, to);
      begins(direction_bytes_.receive, from);
      begins(update_bytes_.send, updates_to);
      begins(update_bytes_.receive, updates_from);
      own_gathered = total(direction_bytes_.receive);
      own_returned = total(update_bytes_.receive);
    }
    for (std::size_t k = 0; k < plan.matrices().size(); ++k) {
      const MatrixShare& share = plan.matrices()[k];
      if (share.wave != wave) continue;
      needed_ |= share.open();
      const View& view = plan.params()[share.param].views[share.block];
      const auto work = std::find_if(works.begin(), works.end(),
                                     [&](const Work& w) { return w.param == share.param && w.block == share.block; });
      Owned owned{&share, nullptr, states[k], {}};
      for (const MatrixShare::Holder& holder : share.holders) {
        const bool here = holder.rank == rank_, own = here && share.owner == rank_;
        if (!here && share.owner != rank_) continue;
        const std::int64_t down = bytes_to_owner(view, holder.part), up = bytes_from_owner(view, holder.part);
        if (!placing) {
          if (own) {
            gathered_own_ += down;
            returned_own_ += up;
          } else if (here) {
            direction_bytes_.send[share.owner] += down;
            update_bytes_.receive[share.owner] += up;
          } else {
            direction_bytes_.receive[holder.rank] += down;
            update_bytes_.send[holder.rank] += up;
          }
          continue;
        }
        const auto take = [](std::int64_t& cursor, std::int64_t bytes) {
          return std::exchange(cursor, cursor + bytes);
        };
        if (own) {
          const std::int64_t direction = take(own_gathered, down), update = take(own_returned, up);
          mine_.push_back({&*work, true, direction, update});
          owned.parts.push_back({&holder, true, direction, update});
        } else if (here) {
          mine_.push_back({&*work, false, take(to[share.owner], down), take(updates_from[share.owner], up)});
        } else {
          owned.parts.push_back({&holder, false, take(from[holder.rank], down), take(updates_to[holder.rank], up)});
        }
      }
      if (!placing || owned.parts.empty()) continue;
      owned.work = &*work;
      owned_.push_back(std::move(owned));
    }
  }
  for (const Mine& mine : mine_) {
    works_.push_back(mine.work);
    keeps_ |= !mine.work->view.passes.empty();
  }
}

void MatrixExchange::size_buffers(const sharding::Plan& plan, MatrixScratch& scratch) {
  grow(staging_.directions, total(direction_bytes_.send));
  grow(staging_.gathered, total(direction_bytes_.receive) + gathered_own_);
  grow(staging_.updates, total(update_bytes_.send));
  grow(keeps_ ? kept_ : staging_.returned, total(update_bytes_.receive) + returned_own_);
  const auto sums = [&](const View& view, std::int64_t rows, std::int64_t cols) {
    grow_values(scratch.row_sums, rows * arrays(view.traffic.row_bytes, sizeof(LineSum)));
    grow_values(scratch.column_sums, cols * arrays(view.traffic.column_bytes, sizeof(LineSum)));
    grow_values(scratch.block_sums, arrays(view.traffic.block_bytes, sizeof(WholeSum)));
  };
  for (const Mine& mine : mine_) {
    const MatrixRun& run = mine.work->tensors.run;
    sums(mine.work->view, run.touched_rows().size(), run.cols);
  }
  for (const Owned& owned : owned_) {
    const MatrixShape shape = plan.params()[owned.share->param].blocks[owned.share->block];
    sums(owned.work->view, shape.rows, shape.cols);
    grow_values(scratch.values, shape.numel());
    grow(scratch.scratch, rules_[owned.share->param]->scratch(shape));
    grow_values(scratch.row_factors, shape.rows);
    grow_values(scratch.column_factors, shape.cols);
  }
}

void MatrixExchange::direct(std::span<const StepInfo> infos, DType momentum_dtype, ThreadPool& pool) {
  for (const Mine& mine : mine_) {
    Work& work = *mine.work;
    const View& view = work.view;
    const std::int64_t rows = work.tensors.run.touched_rows().size(), cols = work.tensors.run.cols;
    Riders riders;
    riders.row_sums = cleared(scratch_.row_sums, rows * arrays(view.traffic.row_bytes, sizeof(LineSum)));
    riders.column_sums = cleared(scratch_.column_sums, cols * arrays(view.traffic.column_bytes, sizeof(LineSum)));
    riders.block_sums = cleared(scratch_.block_sums, arrays(view.traffic.block_bytes, sizeof(WholeSum)));
    std::byte* const to = (mine.owned ? staging_.gathered : staging_.directions).data() + mine.direction;
    rules_[work.param]->direct(work.tensors, work.shape, infos[work.group], momentum_dtype, to, riders, pool);

    Cursor<std::byte> message(to);
    message.skip((work.tensors.run.numel() * view.traffic.element_bytes + 3) / 4 * 4);
    const auto put = [&](const auto& sums) {
      if (!sums.empty())
        std::memcpy(message.skip(static_cast<std::int64_t>(sums.size_bytes())), sums.data(), sums.size_bytes());
    };
    put(riders.row_sums);
    put(riders.column_sums);
    put(riders.block_sums);
  }
}

Ticket MatrixExchange::send_directions(Transport& world) {
  if (!needed_) return {};
  const auto bytes = static_cast<std::size_t>(total(direction_bytes_.receive));
  return world.exchange(std::span(staging_.directions).first(static_cast<std::size_t>(total(direction_bytes_.send))),
                        direction_bytes_.send, std::span(staging_.gathered).first(bytes), direction_bytes_.receive,
                        directions_label_);
}

// The whole direction as fp32, and the whole sums that came with it.
WholeMatrix MatrixExchange::gather(const Owned& owned) {
  const View& view = owned.work->view;
  const Rule& rule = *rules_[owned.share->param];
  const DType payload = rule.payload_dtype();
  WholeMatrix matrix;
  matrix.shape = owned.work->shape;
  matrix.values = scratch_.values.data();
  matrix.state = owned.states;
  matrix.scratch = {scratch_.scratch.data(), static_cast<std::size_t>(rule.scratch(matrix.shape))};
  const std::int64_t row_arrays = arrays(view.traffic.row_bytes, sizeof(LineSum)),
                     column_arrays = arrays(view.traffic.column_bytes, sizeof(LineSum)),
                     block_arrays = arrays(view.traffic.block_bytes, sizeof(WholeSum));
  const auto rows = cleared(scratch_.row_sums, row_arrays * matrix.shape.rows);
  const auto columns = cleared(scratch_.column_sums, column_arrays * matrix.shape.cols);
  const auto block = cleared(scratch_.block_sums, block_arrays);
  for (const Part& part : owned.parts) {
    const sharding::BlockPart& where = part.holder->part;
    Cursor<const std::byte> message(staging_.gathered.data() + part.direction);
    const std::byte* const elements = message.skip(element_section(view, where));
    sharding::for_each_stretch(where, matrix.shape.cols,
                               [&](std::int64_t in_block, std::int64_t in_part, std::int64_t count) {
                                 kernels::cpu_kernels().to_f32(elements + in_part * size_of(payload), payload,
                                                               matrix.values + in_block, count);
                               });
    const Range r = message_rows(where), c = message_columns(where);
    merge_sums(message.skip(r.size() * view.traffic.row_bytes), row_arrays, r.begin, r.size(), rows);
    merge_sums(message.skip(c.size() * view.traffic.column_bytes), column_arrays, c.begin, c.size(), columns);
    merge_sums(message.skip(view.traffic.block_bytes), block_arrays, 0, 1, block);
  }
  matrix.row_sums = rows;
  matrix.column_sums = columns;
  matrix.block_sums = block;
  if (view.traffic.row_answer_bytes > 0) matrix.row_factors = cleared(scratch_.row_factors, matrix.shape.rows);
  if (view.traffic.column_answer_bytes > 0) matrix.column_factors = cleared(scratch_.column_factors, matrix.shape.cols);
  return matrix;
}

void MatrixExchange::scatter(const Owned& owned, const WholeMatrix& matrix) {
  const View& view = owned.work->view;
  const DType payload = rules_[owned.share->param]->payload_dtype();
  std::vector<std::byte>& returned = keeps_ ? kept_ : staging_.returned;
  for (const Part& part : owned.parts) {
    const sharding::BlockPart& where = part.holder->part;
    Cursor<std::byte> message((part.own ? returned : staging_.updates).data() + part.update);
    std::byte* const elements = message.skip(element_section(view, where));
    sharding::for_each_stretch(where, matrix.shape.cols,
                               [&](std::int64_t in_block, std::int64_t in_part, std::int64_t count) {
                                 kernels::cpu_kernels().from_f32(matrix.values + in_block,
                                                                 elements + in_part * size_of(payload), payload, count);
                               });
    const auto put = [&](std::span<const float> factors, Range lines) {
      if (factors.empty()) return;
      const std::size_t bytes = lines.size() * sizeof(float);
      std::memcpy(message.skip(static_cast<std::int64_t>(bytes)), factors.data() + lines.begin, bytes);
    };
    put(matrix.row_factors, message_rows(where));
    put(matrix.column_factors, message_columns(where));
    if (view.traffic.block_answer_bytes > 0) std::memcpy(message.skip(sizeof(double)), &matrix.number, sizeof(double));
  }
}

void MatrixExchange::solve(std::span<const StepInfo> infos, ThreadPool& pool) {
  for (const Owned& owned : owned_) {
    WholeMatrix matrix = gather(owned);
    rules_[owned.share->param]->solve(matrix, infos[owned.work->group], pool, owned.work->health);
    scatter(owned, matrix);
  }
}

Ticket MatrixExchange::send_updates(Transport& world) {
  if (!needed_) return {};
  std::vector<std::byte>& returned = keeps_ ? kept_ : staging_.returned;
  return world.exchange(std::span(staging_.updates).first(static_cast<std::size_t>(total(update_bytes_.send))),
                        update_bytes_.send,
                        std::span(returned).first(static_cast<std::size_t>(total(update_bytes_.receive))),
                        update_bytes_.receive, updates_label_);
}

void MatrixExchange::take_updates() {
  const std::vector<std::byte>& returned = keeps_ ? kept_ : staging_.returned;
  for (const Mine& mine : mine_) {
    Work& work = *mine.work;
    const View::Traffic& traffic = work.view.traffic;
    const std::int64_t rows = work.tensors.run.touched_rows().size(), cols = work.tensors.run.cols;
    Cursor<const std::byte> message(returned.data() + mine.update);
    work.tensors.solved = message.skip((work.tensors.run.numel() * traffic.element_bytes + 3) / 4 * 4);
    work.tensors.solved_dtype = rules_[work.param]->payload_dtype();
    const auto factors = [&](std::int64_t bytes) {
      return bytes == 0 ? nullptr : reinterpret_cast<const float*>(message.skip(bytes));
    };
    work.tensors.row_factors = factors(rows * traffic.row_answer_bytes);
    work.tensors.column_factors = factors(cols * traffic.column_answer_bytes);
    if (traffic.block_answer_bytes > 0) std::memcpy(&work.tensors.number, message.skip(sizeof(double)), sizeof(double));
  }
}

std::int64_t matrix_exchange_bytes(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param) {
  std::int64_t staged[4] = {}, kept = 0, values = 0, scratch = 0;
  for (int wave = 0; wave < plan.wave_count(); ++wave) {
    std::int64_t directions = 0, gathered = 0, updates = 0, returned = 0;
    bool keeps = false;
    for (const MatrixShare& share : plan.matrices()) {
      if (share.wave != wave) continue;
      const View& view = plan.params()[share.param].views[share.block];
      const MatrixShape shape = plan.params()[share.param].blocks[share.block];
      for (const MatrixShare::Holder& holder : share.holders) {
        const bool here = holder.rank == rank, owns = share.owner == rank;
        const std::int64_t down = bytes_to_owner(view, holder.part), up = bytes_from_owner(view, holder.part);
        if (here && !owns) directions += down;
        if (owns) gathered += down;
        if (owns && !here) updates += up;
        if (here) returned += up;
        keeps |= here && !view.passes.empty();
      }
      if (share.owner != rank) continue;
      values = std::max(values, shape.numel());
      scratch = std::max(scratch, rule_of_param[share.param]->scratch(shape));
    }
    const std::int64_t all[4] = {directions, gathered, updates, keeps ? 0 : returned};
    for (int i = 0; i < 4; ++i) staged[i] = std::max(staged[i], all[i]);
    if (keeps) kept += returned;
  }
  const int turns = std::min(matrix_waves_under_way, plan.wave_count());
  return turns * std::accumulate(std::begin(staged), std::end(staged), std::int64_t{0}) + kept +
         values * size_of(DType::f32) + scratch;
}

}  // namespace regatta
