#include "runtime/engine/work.h"

#include <algorithm>

namespace regatta {
namespace {

constexpr int max_stats_per_line = 4;

// Lines of `touched` that no share of this block and pass covers.
std::vector<Range> closed_lines(std::vector<Range> touched, std::span<const sharding::Share* const> shares) {
  for (const sharding::Share* share : shares) {
    std::vector<Range> rest;
    for (const Range& range : touched) {
      const Range open = intersect(range, share->lines);
      if (open.empty()) {
        rest.push_back(range);
        continue;
      }
      if (range.begin < open.begin) rest.push_back({range.begin, open.begin});
      if (open.end < range.end) rest.push_back({open.end, range.end});
    }
    touched = std::move(rest);
  }
  return touched;
}

}  // namespace

std::vector<Work> make_works(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param,
                             std::span<const int> group_of_param) {
  std::vector<Work> works;
  const sharding::RankLayout& layout = plan.layout(rank);
  for (int p = 0; p < static_cast<int>(layout.pieces.size()); ++p) {
    const sharding::Piece& piece = layout.pieces[p];
    const sharding::ParamSpec& param = plan.params()[piece.param];
    Work whole;
    whole.piece = p;
    whole.param = piece.param;
    whole.block = piece.block;
    whole.group = group_of_param[piece.param];
    whole.bucket = piece.bucket;
    whole.bucket_offset = piece.bucket_offset;
    whole.primary = plan.primary(rank, piece.param);
    whole.shape = param.blocks[piece.block];
    whole.view = param.views[piece.block];
    whole.tensors.run = piece.part.matrix_run();
    if (whole.view.kind == sharding::View::Kind::elements) {
      works.push_back(std::move(whole));
      continue;
    }

    std::vector<std::vector<const sharding::Share*>> shares(whole.view.passes.size() + 1);
    for (const std::vector<sharding::Share>& round : plan.rounds())
      for (const sharding::Share& share : round)
        if (share.param == piece.param && share.block == piece.block &&
            std::binary_search(share.holders.begin(), share.holders.end(), rank))
          shares[share.pass].push_back(&share);
    whole.block_closed = shares.back().empty();

    const MatrixRun run = whole.tensors.run;
    const auto add = [&](std::int64_t begin, std::int64_t end, bool one_sweep) {
      if (begin >= end) return;
      Work work = whole;
      work.one_sweep = one_sweep;
      work.tensors.run = {run.rows, run.cols, begin, end};
      work.bucket_offset += begin - run.begin;
      const Rule& rule = *rule_of_param[piece.param];
      for (std::size_t k = 0; k < work.view.passes.size() && !one_sweep; ++k) {
        PassLines pass;
        pass.line = work.view.passes[k];
        const Range rows = work.tensors.run.touched_rows();
        pass.first = pass.line == Line::row ? piece.part.rows.begin + rows.begin : piece.part.cols.begin;
        pass.count = pass.line == Line::row ? rows.size() : piece.part.cols.size();
        pass.stats_per_line = rule.stats_per_line(static_cast<int>(k), work.shape);
        pass.stats.resize(pass.stats_per_line * pass.count);
        pass.inverse.resize(pass.count);
        sharding::BlockPart part = piece.part;
        part.run = {begin, end};
        pass.closed = closed_lines(sharding::touched_lines(part, pass.line), shares[k]);
        work.passes.push_back(std::move(pass));
      }
      for (const PassLines& pass : work.passes) work.factors.push_back({pass.line, pass.inverse.data()});
      works.push_back(std::move(work));
    };

    Range closed{0, 0};  // rows of the run's matrix that only this rank holds, all of them in the run
    if (whole.view.one_sweep_rows()) {
      std::vector<Range> rows = closed_lines(sharding::touched_lines(piece.part, Line::row), shares[0]);
      if (!rows.empty()) closed = {rows.front().begin - piece.part.rows.begin, rows.back().end - piece.part.rows.begin};
    }
    if (closed.empty()) {
      add(run.begin, run.end, false);
    } else {
      add(run.begin, closed.begin * run.cols, false);
      add(closed.begin * run.cols, closed.end * run.cols, true);
      add(closed.end * run.cols, run.end, false);
    }
  }
  return works;
}

void observe_work(Work& work, const Rule& rule, int round, const StepInfo& info, DType momentum_dtype,
                  ThreadPool& pool) {
  if (round < static_cast<int>(work.passes.size())) {
    PassLines& lines = work.passes[round];
    std::fill(lines.stats.begin(), lines.stats.end(), kernels::LineSum{});
    rule.observe(round, work.tensors, work.shape, info, momentum_dtype,
                 {work.factors.data(), static_cast<std::size_t>(round)}, lines.stats, pool);
    finish_closed_lines(work, rule, round);
  } else if (round + 1 == work.rounds() && work.block_closed) {
    work.block_sum = kernels::value(work.block_terms);
  }
}

void apply_work(Work& work, const Rule& rule, const StepInfo& info, DType momentum_dtype, ThreadPool& pool) {
  const double scale = rule.step_scale(work.shape, info, work.block_sum);
  for (float& factor : work.passes.back().inverse) factor = kernels::step_factor(factor, scale);
  rule.apply(work.tensors, work.shape, info, momentum_dtype, work.factors, pool, work.health);
}

float finish_line(Work& work, const Rule& rule, int pass, std::span<const kernels::LineSum> stats) {
  const float inverse = rule.inverse(pass, work.shape, stats, work.health);
  if (work.view.block_scale && pass + 1 == static_cast<int>(work.passes.size()))
    kernels::add(work.block_terms, static_cast<double>(rule.block_term(stats, inverse)));
  return inverse;
}

void finish_closed_lines(Work& work, const Rule& rule, int pass) {
  PassLines& lines = work.passes[pass];
  kernels::LineSum stats[max_stats_per_line];
  for (const Range& range : lines.closed)
    for (std::int64_t line = range.begin - lines.first; line < range.end - lines.first; ++line) {
      for (int s = 0; s < lines.stats_per_line; ++s) stats[s] = lines.stats[s * lines.count + line];
      lines.inverse[line] = finish_line(work, rule, pass, {stats, static_cast<std::size_t>(lines.stats_per_line)});
    }
}

}  // namespace regatta
