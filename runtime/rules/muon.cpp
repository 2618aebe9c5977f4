// Muon: momentum orthogonalised.
//
//     D = Nesterov mix of the momentum;  O = Newton-Schulz of D
//     w <- w (1 - lr weight_decay) - lr s O
//
// Sources: KellerJordan/Muon; MoonshotAI/Moonlight (arXiv 2502.16982); torch.optim.Muon. They differ in
//
//     variant         momentum     guard of the norm   s                        weight decay
//     moonlight       heavy ball   + 1e-7              0.2 sqrt(max(m, n))      0.1
//     keller_jordan   ema          + 1e-7              sqrt(max(1, m / n))      0
//     torch           ema          at least 1e-7       sqrt(max(1, m / n))      0.1
//
// moonlight is the default: its update has the RMS of AdamW's, so AdamW's learning rates carry over, and REG's too. The
// form of the momentum changes only what is stored: the direction is divided by its own norm. `variant` sets the other
// settings, whatever their order; those given as well win.

#include <cmath>

#include "runtime/rules/matrix_rule.h"

namespace regatta {
namespace {

struct MuonSettings : MatrixSettings {
  enum class Variant : std::uint8_t { moonlight, keller_jordan, torch };
  enum class Scale : std::uint8_t { match_rms, original };
  Variant variant = Variant::moonlight;
  Scale scale = Scale::match_rms;

  MuonSettings() { take(Variant::moonlight); }
  void take(Variant chosen) {
    variant = chosen;
    form = chosen == Variant::moonlight ? Form::heavy_ball : Form::ema;
    scale = chosen == Variant::moonlight ? Scale::match_rms : Scale::original;
    weight_decay = chosen == Variant::keller_jordan ? 0 : 0.1;
    iteration.guard = chosen == Variant::torch ? NewtonSchulz::Guard::clamp : NewtonSchulz::Guard::add;
  }
};

constexpr std::string_view variant_names[] = {"moonlight", "keller_jordan", "torch"};
constexpr std::string_view scale_names[] = {"match_rms", "original"};
constexpr Setting<MuonSettings> own[] = {
    {"variant", "moonlight, keller_jordan or torch",
     [](MuonSettings& s, std::string_view text) {
       for (std::size_t i = 0; i < std::size(variant_names); ++i) {
         if (text != variant_names[i]) continue;
         s.take(static_cast<MuonSettings::Variant>(i));
         return true;
       }
       return false;
     },
     [](const MuonSettings& s) { return std::string(variant_names[static_cast<std::size_t>(s.variant)]); }},
    choice_setting<&MuonSettings::scale, scale_names>("scale", "match_rms or original"),
};
constexpr auto known = with_matrix_settings(own);

class MuonRule final : public MatrixRule {
 public:
  explicit MuonRule(const MuonSettings& settings) : MatrixRule(settings), settings_(settings) {}
  std::string_view name() const override { return "muon"; }
  std::string settings_text() const override { return text_of_settings<MuonSettings>("muon", known, settings_); }

 protected:
  Step step(MatrixShape block, const StepInfo& info, double) const override {
    const auto m = static_cast<double>(block.rows), n = static_cast<double>(block.cols);
    return decoupled(info, settings_.scale == MuonSettings::Scale::match_rms ? 0.2 * std::sqrt(std::max(m, n))
                                                                             : std::sqrt(std::max(1.0, m / n)));
  }

 private:
  MuonSettings settings_;
};

}  // namespace

const RuleEntry muon_entry{
    [] {
      return info_of<MuonSettings>({"muon",
                                    "orthogonalised momentum; variants of Keller Jordan, Moonlight and torch",
                                    "KellerJordan/Muon; arXiv 2502.16982; torch.optim.Muon",
                                    "high: read in the authors' code",
                                    {}},
                                   known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      std::vector<std::pair<std::string, std::string>> ordered(given.begin(), given.end());
      std::stable_partition(ordered.begin(), ordered.end(), [](const auto& s) { return s.first == "variant"; });
      return std::make_shared<MuonRule>(read_settings<MuonSettings>("muon", known, ordered));
    }};

}  // namespace regatta
