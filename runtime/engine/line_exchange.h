#pragma once
// Carries one round of open lines: partial statistics to the lines' owners, what the owners found back to all who hold
// a part. Both directions are one sparse all-to-all for the whole model. Knows plans and line sums, no rule's name.

#include <span>
#include <vector>

#include "runtime/engine/work.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

class LineExchange {
 public:
  /// Round `round` of the plan; `works` and `rule_of_param` outlive this.
  LineExchange(const sharding::Plan& plan, int round, int rank, std::span<Work> works,
               std::span<const Rule* const> rule_of_param);

  /// After a rule was replaced by one with the same view and other settings.
  void set_rules(std::span<const Rule* const> rule_of_param);

  /// False when no rank has anything to say in this round; then the other calls do nothing.
  bool needed() const { return needed_; }
  Ticket send_partials(Transport& world);
  /// Owner's side, once the partials are here: merges, finishes, and sends the answers.
  Ticket send_answers(Transport& world);
  /// Once the answers are here: writes inverse norms and block sums into the works.
  void take_answers();

 private:
  struct Item {  // a share this rank takes part in
    const sharding::Share* share;
    Work* work;
    std::int64_t offset;  // of the share's first line in the work's arrays
  };
  struct Outbox {
    std::vector<std::byte> send, receive;
    std::vector<std::int64_t> send_bytes, receive_bytes;  // by rank
    void size(int world);
  };
  bool is_block(const Item& item) const { return item.share->pass == static_cast<int>(item.work->passes.size()); }
  void pack_partials(const Item& item, std::byte* to) const;
  void finish_owned(const Item& item);

  int rank_;
  bool needed_ = false;
  std::vector<Item> items_;
  std::vector<const Rule*> rules_;  // by item
  Outbox partials_, answers_;
  std::string partials_label_, answers_label_;
  std::vector<std::int64_t> cursor_, write_;  // scratch: positions by rank
  std::vector<kernels::LineSum> merged_;
  std::vector<std::byte> finished_;  // answers of one item
};

}  // namespace regatta
