#include "runtime/telemetry/telemetry.h"

#include <httplib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/error.h"
#include "runtime/log.h"
#include "runtime/telemetry/page.h"
#include "runtime/telemetry/snapshot.h"
#include "runtime/version.h"

namespace regatta {
namespace {

constexpr int serving_threads = 2;
constexpr const char* page_type = "text/plain; version=0.0.4; charset=utf-8";

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

struct HostPort {
  std::string host;
  int port = 0;
};

HostPort parse_address(const std::string& text, const char* what) {
  const std::size_t colon = text.rfind(':');
  HostPort address{text.substr(0, colon), -1};
  const char* end = text.data() + text.size();
  if (colon != std::string::npos && std::from_chars(text.data() + colon + 1, end, address.port).ptr != end)
    address.port = -1;
  if (colon == std::string::npos || address.host.empty() || address.port < 0 || address.port > 65535)
    throw Error(Code::invalid_argument,
                std::string(what) + " is '" + text + "'; expected HOST:PORT, for example 127.0.0.1:9464");
  return address;
}

std::string node_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

template <class Value>
void take_top(std::vector<TopParam>& top, std::span<const ParamReport> params, int count, const Value& value) {
  std::vector<std::pair<double, std::size_t>> order;
  for (std::size_t p = 0; p < params.size(); ++p)
    if (value(params[p]) > 0) order.emplace_back(value(params[p]), p);
  const std::size_t kept = std::min(order.size(), static_cast<std::size_t>(count));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), std::greater<>());
  top.resize(kept);
  for (std::size_t i = 0; i < kept; ++i) top[i] = {params[order[i].second].name, order[i].first};
}

}  // namespace

void TimeHistogram::add(double seconds) {
  const auto bucket = std::lower_bound(metrics::time_bounds.begin(), metrics::time_bounds.end(), seconds);
  ++counts[static_cast<std::size_t>(bucket - metrics::time_bounds.begin())];
  sum += seconds;
}

struct Telemetry::Impl {
  TelemetrySettings settings;
  PageFacts facts;
  Snapshot totals;  // of the rank's thread
  SnapshotExchange exchange;
  std::mutex readers;
  httplib::Server server;
  std::thread serving;
  std::string address, discovery_file;
  int rank = 0;
  double last_end = 0;  // steady time of the last record
  std::atomic<bool> served = false;

  // A constructor that throws ends the serving, too.
  ~Impl() {
    server.stop();
    if (serving.joinable()) serving.join();
  }

  std::string page() {
    // Only readers meet here; the writer never does.
    const std::lock_guard lock(readers);
    return metrics_page(exchange.front(), facts);
  }

  void serve(int local_rank) {
    HostPort wanted = parse_address(settings.address, "the metrics address");
    server.new_task_queue = [] { return new httplib::ThreadPool(serving_threads); };
    server.set_keep_alive_max_count(1000);
    // The library's own options let a second job take the same port, and a scrape would reach either.
    server.set_socket_options([](socket_t socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    server.set_tcp_nodelay(true);  // a page is two writes, and the second would wait 40 ms for an answer to the first
    server.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(page(), page_type);
    });
    server.Get("/", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("The metrics of a Regatta rank are at /metrics\n", "text/plain");
    });
    if (wanted.port == 0) {
      wanted.port = server.bind_to_any_port(wanted.host);
    } else {
      wanted.port += local_rank;
      if (!server.bind_to_port(wanted.host, wanted.port)) wanted.port = -1;
    }
    if (wanted.port < 0)
      throw Error(Code::invalid_argument, "the metrics address " + settings.address + " of rank " +
                                              std::to_string(rank) + " (local rank " + std::to_string(local_rank) +
                                              ") cannot be bound; is the port taken?");
    address = wanted.host + ":" + std::to_string(wanted.port);
    serving = std::thread([this] {
      server.listen_after_bind();
      served = true;
    });
    // stop() has no effect before, and the end would wait for ever.
    while (!server.is_running() && !served) std::this_thread::yield();
  }

  // Reachable from elsewhere: a server on all interfaces is found by its node's name.
  std::string reachable(const std::string& node) const {
    if (address.starts_with("0.0.0.0:")) return node + address.substr(address.rfind(':'));
    return address;
  }

  void write_discovery(const std::vector<std::string>& targets) {
    namespace fs = std::filesystem;
    nlohmann::json document = nlohmann::json::array();
    document.push_back({{"targets", targets}, {"labels", {{"job", settings.job}}}});
    std::error_code failed;
    fs::create_directories(settings.discovery_dir, failed);
    discovery_file = (fs::path(settings.discovery_dir) / (settings.job + ".json")).string();
    const std::string temporary = discovery_file + ".new";
    std::ofstream(temporary) << document.dump(2) << "\n";
    fs::rename(temporary, discovery_file, failed);
    if (failed) {
      log::warning("the discovery file " + discovery_file + " cannot be written: " + failed.message());
      discovery_file.clear();
    }
  }

  void push() {
    if (settings.push_address.empty()) return;
    const HostPort gateway = parse_address(settings.push_address, "the push address");
    httplib::Client client(gateway.host, gateway.port);
    client.set_connection_timeout(2);
    client.set_write_timeout(2);
    client.set_read_timeout(2);
    const std::string path = "/metrics/job/" + settings.job + "/rank/" + std::to_string(rank);
    const auto answer = client.Put(path.c_str(), page(), page_type);
    if (!answer || answer->status >= 300)
      log::warning("the push of metrics to " + settings.push_address + path + " failed" +
                   (answer ? " with status " + std::to_string(answer->status) : ""));
  }
};

Telemetry::Telemetry(TelemetrySettings settings, const TelemetryIdentity& identity, Transport& transport)
    : impl_(std::make_unique<Impl>()) {
  Impl& s = *impl_;
  s.settings = std::move(settings);
  s.rank = transport.rank();
  const std::string node = node_name();
  s.facts.labels = {{"job", s.settings.job},
                    {"rank", std::to_string(s.rank)},
                    {"node", node},
                    {"dp", std::to_string(identity.mesh.coordinate(s.rank, "dp"))},
                    {"tp", std::to_string(identity.mesh.coordinate(s.rank, "tp"))}};
  s.facts.info = {{"version", std::string(build_facts().version)},
                  {"world_size", std::to_string(transport.world_size())},
                  {"rule", identity.rule},
                  {"mesh", identity.mesh.text()},
                  {"transport", identity.transport}};
  s.facts.state_bytes = identity.state_bytes;
  s.facts.world_size = transport.world_size();
  s.totals.last_step_timestamp = s.totals.last_save_timestamp = now_seconds();
  s.exchange.back() = s.totals;
  s.exchange.publish();

  const std::vector<std::string> nodes = transport.gather_strings(node, "nodes of metrics");
  const auto local_rank = std::count(nodes.begin(), nodes.begin() + s.rank, node);
  std::string problem;
  if (!s.settings.address.empty()) {
    try {
      s.serve(static_cast<int>(local_rank));
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  // A rank that cannot serve ends the job on all ranks, with its own words.
  for (const std::string& theirs : transport.gather_strings(problem, "problems of metrics"))
    if (!theirs.empty()) throw Error(Code::invalid_argument, theirs);
  const std::vector<std::string> targets = transport.gather_strings(s.reachable(node), "addresses of metrics");
  if (s.rank == 0 && !s.settings.discovery_dir.empty()) s.write_discovery(targets);
  s.last_end = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Telemetry::~Telemetry() {
  impl_->push();
  if (!impl_->discovery_file.empty()) {
    std::error_code ignored;
    std::filesystem::remove(impl_->discovery_file, ignored);
  }
}

void Telemetry::record(const StepReport& report, std::span<const ParamReport> params, const TrainerFacts& facts) {
  Snapshot& s = impl_->totals;
  const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  s.last_step_timestamp = now_seconds();
  ++s.steps;
  if (report.clip_factor < 1) ++s.clipped_steps;
  if (report.command.kind == Command::Kind::set) ++s.setting_changes;
  s.tokens += report.skipped ? 0 : facts.tokens;
  s.loss = facts.loss;
  if (report.proof) {
    ++s.proofs;
    s.proof_differences += report.proof->differing;
  }
  // A skipped step has no health figures: the last ones stay.
  if (report.skipped) {
    const std::vector<GroupReport> groups = std::move(s.report.groups);
    s.report = report;
    if (!groups.empty()) s.report.groups = groups;
  } else {
    s.report = report;
    take_top(s.by_update, params, impl_->settings.top_params, [](const ParamReport& p) { return p.update_rms; });
    take_top(s.by_spread, params, impl_->settings.top_params, [](const ParamReport& p) {
      return p.smallest_line_norm > 0 ? p.largest_line_norm / p.smallest_line_norm : 0.0;
    });
  }
  s.step.add(now - impl_->last_end);
  impl_->last_end = now;
  const StepTimes& t = report.times;
  const double seconds[] = {facts.data_seconds, facts.forward_seconds, facts.backward_seconds,  t.wait_grad_seconds,
                            t.vote_seconds,     t.sweep_seconds,       t.wait_exchange_seconds, t.wait_gather_seconds};
  static_assert(std::size(seconds) == metrics::phases.size());
  for (std::size_t i = 0; i < std::size(seconds); ++i) s.phases[i].add(seconds[i]);
  s.sent.reduce_scatter += report.bytes.reduce_scatter;
  s.sent.all_gather += report.bytes.all_gather;
  s.sent.exchange += report.bytes.exchange;
  s.sent.vote += report.bytes.vote;
  s.times.grad_comm_seconds += t.grad_comm_seconds;
  s.times.gather_comm_seconds += t.gather_comm_seconds;
  s.times.wait_grad_seconds += t.wait_grad_seconds;
  s.times.wait_exchange_seconds += t.wait_exchange_seconds;
  s.times.wait_gather_seconds += t.wait_gather_seconds;
  impl_->exchange.back() = s;
  impl_->exchange.publish();
}

void Telemetry::saved() {
  impl_->totals.last_save_timestamp = now_seconds();
  impl_->exchange.back() = impl_->totals;
  impl_->exchange.publish();
}

const std::string& Telemetry::address() const { return impl_->address; }

std::string Telemetry::page() const { return impl_->page(); }

std::string telemetry_library() { return "prometheus-cpp"; }

}  // namespace regatta
