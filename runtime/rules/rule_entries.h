#pragma once
// All rules there are, in the order in which they are listed. A rule's entry is defined in its own file.

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "runtime/rules/rule.h"

namespace regatta {

struct RuleEntry {
  RuleInfo (*info)();
  std::shared_ptr<const Rule> (*make)(std::span<const std::pair<std::string, std::string>> settings);
};

extern const RuleEntry reg_entry, adamw_entry, muon_entry, normuon_entry, adamuon_entry, trasmuon_entry, namo_entry,
    namo_d_entry, row_norm_entry, column_norm_entry, centred_row_norm_entry;

inline constexpr const RuleEntry* rule_entries[] = {
    &reg_entry,  &adamw_entry,  &muon_entry,     &normuon_entry,     &adamuon_entry,          &trasmuon_entry,
    &namo_entry, &namo_d_entry, &row_norm_entry, &column_norm_entry, &centred_row_norm_entry,
};

}  // namespace regatta
