#pragma once
// Every metric of a job: name, type, unit and what it says. Dashboards and alerts in deploy/ use these names only.
//
// All carry the labels job, rank, node, dp and tp; what else a metric carries is said with it. Bounded: no label takes
// more values than groups, phases, collectives, or `top_params` names at a time.

#include <array>
#include <string_view>

namespace regatta::metrics {

enum class Type { counter, gauge, histogram };

struct Metric {
  std::string_view name;
  Type type;
  std::string_view help;
};

inline constexpr Metric info{"regatta_info", Type::gauge,
                             "Always 1. Labels: version, world_size, rule, mesh, transport."};
inline constexpr Metric world_size{"regatta_world_size", Type::gauge, "Ranks of the job."};
inline constexpr Metric last_save_timestamp{"regatta_last_save_timestamp_seconds", Type::gauge,
                                            "Unix time at which the job last saved; its start before that."};
inline constexpr Metric last_step_timestamp{
    "regatta_last_step_timestamp_seconds", Type::gauge,
    "Unix time at which the last step ended; the start of the job before that."};
inline constexpr Metric steps{"regatta_steps_total", Type::counter, "Updates applied."};
inline constexpr Metric skipped_steps{"regatta_skipped_steps_total", Type::counter,
                                      "Steps skipped because a gradient was NaN or Inf."};
inline constexpr Metric clipped_steps{"regatta_clipped_steps_total", Type::counter,
                                      "Steps whose gradients were scaled down to the clipping norm."};
inline constexpr Metric setting_changes{"regatta_setting_changes_total", Type::counter,
                                        "Commands that changed settings of the running job."};
inline constexpr Metric tokens{"regatta_tokens_total", Type::counter, "Tokens trained on, by all ranks together."};
inline constexpr Metric loss{"regatta_loss", Type::gauge, "Training loss of the last step, as the trainer gave it."};
inline constexpr Metric learning_rate{"regatta_learning_rate", Type::gauge, "Learning rate of the last step."};
inline constexpr Metric loss_scale{"regatta_loss_scale_ratio", Type::gauge,
                                   "Loss scale the last step's gradients carried."};
inline constexpr Metric grad_norm{"regatta_grad_norm", Type::gauge,
                                  "Global gradient norm before clipping, replicated parameters counted once."};
inline constexpr Metric clip{"regatta_clip_ratio", Type::gauge, "Factor that clipping put on the gradients; 1: none."};

// By group (label: group).
inline constexpr Metric group_grad_norm{"regatta_group_grad_norm", Type::gauge, "Gradient norm of a parameter group."};
inline constexpr Metric update_rms{"regatta_update_rms", Type::gauge,
                                   "Root mean square of w' - w as applied, weight decay included."};
inline constexpr Metric normalized_update_rms{"regatta_normalized_update_rms", Type::gauge,
                                              "update_rms over the learning rate; for REG near rho."};
inline constexpr Metric weight_rms{"regatta_weight_rms", Type::gauge, "Root mean square of the weights."};
inline constexpr Metric update_to_weight{"regatta_update_to_weight_ratio", Type::gauge, "update_rms over weight_rms."};
inline constexpr Metric line_norm_min{"regatta_line_norm_min", Type::gauge,
                                      "Smallest norm of a row or column of the momentum, zero lines left out."};
inline constexpr Metric line_norm_max{"regatta_line_norm_max", Type::gauge,
                                      "Largest norm of a row or column of the momentum."};
inline constexpr Metric line_spread{"regatta_line_norm_spread_ratio", Type::gauge,
                                    "Largest over smallest line norm: a cheap proxy of conditioning."};
inline constexpr Metric zero_lines{"regatta_zero_lines", Type::gauge, "Lines whose norm is zero; they stand still."};
inline constexpr Metric clamped_lines{"regatta_clamped_lines", Type::gauge, "Lines whose norm is below eps."};
inline constexpr Metric non_finite_lines{"regatta_non_finite_lines", Type::gauge, "Lines whose norm is NaN or Inf."};

// Of the parameters that lead (label: param), at most `top_params` of each.
inline constexpr Metric param_update_rms{"regatta_param_update_rms", Type::gauge,
                                         "update_rms of the parameters with the largest."};
inline constexpr Metric param_line_spread{"regatta_param_line_norm_spread_ratio", Type::gauge,
                                          "Line norm spread of the parameters with the largest."};

inline constexpr Metric proofs{"regatta_live_proofs_total", Type::counter,
                               "Parameters computed again on one rank and compared bit by bit."};
inline constexpr Metric proof_differences{"regatta_live_proof_differences_total", Type::counter,
                                          "Numbers that differed in live proofs; 0 unless something is broken."};

// Of this rank.
inline constexpr Metric step_seconds{
    "regatta_step_seconds", Type::histogram,
    "Wall time from one step's end to the next: the trainer's work and the optimizer's."};
inline constexpr Metric phase_seconds{"regatta_step_phase_seconds", Type::histogram,
                                      "Wall time of a step's phases. Label phase: data, forward, backward, wait_grad, "
                                      "vote, sweep, wait_exchange, wait_gather."};
inline constexpr Metric sent_bytes{
    "regatta_sent_bytes_total", Type::counter,
    "Payload sent to other ranks. Label collective: reduce_scatter, all_gather, exchange, "
    "vote."};
inline constexpr Metric communication_seconds{
    "regatta_communication_seconds_total", Type::counter,
    "Busy time of collectives. Label collective: reduce_scatter, all_gather."};
inline constexpr Metric exposed_seconds{"regatta_exposed_communication_seconds_total", Type::counter,
                                        "Time the optimizer stood waiting for a collective. Label collective: "
                                        "reduce_scatter, exchange, all_gather."};
inline constexpr Metric state_bytes{"regatta_state_bytes", Type::gauge,
                                    "Optimizer state on this rank: momentum, moments, master weights."};
inline constexpr Metric resident_memory{
    "regatta_resident_memory_bytes", Type::gauge,
    "Main memory that this rank's process holds; ranks that are threads of one process all show that process."};

/// Upper bounds of the time histograms, in seconds.
inline constexpr std::array<double, 14> time_bounds{1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1,
                                                    0.3,  1,    3,    10,   30,   100,  300};

inline constexpr std::array<std::string_view, 8> phases{"data", "forward", "backward",      "wait_grad",
                                                        "vote", "sweep",   "wait_exchange", "wait_gather"};

}  // namespace regatta::metrics
