#pragma once
// A rank's metrics for Prometheus: served over HTTP, pushed at the end of short jobs, and found through a file that the
// job writes. metrics.h names them.
//
//     Telemetry telemetry(settings, identity, transport);               // collective
//     StepReport report = engine.step(lr);
//     telemetry.record(report, engine.param_reports(), {.loss = loss, .tokens = tokens});
//
// record() is called by the rank's thread after each step; it copies figures into a buffer of its own and never waits
// for a scrape. Scrapes are answered by threads of the server from the last complete copy. One per rank.
//
// Errors: Error(invalid_argument) when the address is not one, cannot be bound, or this build has no prometheus-cpp.
// What goes wrong later (a push that fails, a file that cannot be written) is a warning in the log: it never stops a
// job.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "runtime/engine/step_report.h"
#include "runtime/transport/transport.h"
#include "sharding/mesh.h"

namespace regatta {

struct TelemetrySettings {
  /// HOST:PORT of the first rank of a host; the others of that host listen on the following ports. Port 0: any free
  /// one. Empty: not served. Loopback is the safe host; 0.0.0.0 serves everybody who can reach the machine.
  std::string address;
  std::string job = "regatta";  ///< the label `job`
  std::string discovery_dir;    ///< where rank 0 writes JOB.json for Prometheus' file_sd; empty: nowhere
  std::string push_address;     ///< HOST:PORT of a push gateway that gets the last figures; empty: none
  int top_params = 8;           ///< parameters named by param_* metrics

  bool wanted() const { return !address.empty() || !push_address.empty(); }
};

/// What does not change during a job, for labels and the info metric.
struct TelemetryIdentity {
  sharding::Mesh mesh;
  std::string rule;
  std::string transport;
  std::int64_t state_bytes = 0;
};

/// What the trainer knows about a step.
struct TrainerFacts {
  std::optional<double> loss;
  std::int64_t tokens = 0;  ///< of the step, over all ranks
  double data_seconds = 0;
  double forward_seconds = 0;
  double backward_seconds = 0;
};

class Telemetry {
 public:
  /// Collective over `transport`, the transport of all ranks of the mesh.
  Telemetry(TelemetrySettings settings, const TelemetryIdentity& identity, Transport& transport);
  /// Pushes once more, stops serving, removes the discovery file.
  ~Telemetry();
  Telemetry(const Telemetry&) = delete;
  Telemetry& operator=(const Telemetry&) = delete;

  void record(const StepReport& report, std::span<const ParamReport> params, const TrainerFacts& facts);

  /// The job has saved what it would need to go on, or its result.
  void saved();

  /// "127.0.0.1:9464"; empty when nothing is served.
  const std::string& address() const;
  /// The page as a scrape gets it.
  std::string page() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Version of the metrics library; "not built in" without one.
std::string telemetry_library();

}  // namespace regatta
