// A trainer that knows Regatta by its installed package only, on one rank: its metrics are those of `regatta finetune`,
// and a command that came in by the control service changes its learning rate.

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "runtime/control/audit_log.h"
#include "runtime/control/mailbox.h"
#include "runtime/control/server.h"
#include "runtime/control/steering.h"
#include "runtime/engine/engine.h"
#include "runtime/telemetry/telemetry.h"
#include "runtime/transport/local/local_transport.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("wrong: %s\n", what);
  ++failures;
}

void train(const std::string& folder) {
  using namespace regatta;
  auto transports = make_local_transports(1);
  const sharding::Mesh mesh({{"dp", 1}});
  Engine engine({{.name = "W", .shape = {8, 6}}}, {{.name = "matrices", .rule = make_rule("reg", {})}}, mesh,
                *transports[0], {});
  engine.publish_params();
#if HAS_METRICS
  Telemetry telemetry({.address = "127.0.0.1:0", .job = "mine"}, {mesh, "reg", "local", engine.state_bytes()},
                      *transports[0]);
#endif
  control::Mailbox mailbox;
  control::AuditLog audit(folder + "/audit.jsonl");
#if HAS_CONTROL
  control::Server server({.address = "127.0.0.1:0"}, mailbox);
  expect(server.address().starts_with("127.0.0.1:"), "the control service has an address");
#endif
  control::Steering steering(engine, *transports[0], &mailbox, &audit);
  constexpr int steps = 1 << 30;  // until the command has come
  steering.start(steps);
  control::Answer answer;
  std::jthread caller([&] {
    control::Request request;
    request.command.kind = Command::Kind::set;
    request.command.fields = Command::lr_given;
    request.command.lr = 0.5;
    request.who = "a test";
    answer = mailbox.send(request, [] { return false; });
  });
  const std::vector<float> grad(48, 0.25F);
  double last_lr = 0;
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for (int step = 1; last_lr != 0.5 && std::chrono::steady_clock::now() < give_up; ++step) {
    engine.add_grad(0, grad.data(), DType::f32);
    steering.before_vote();
    const StepReport report = engine.step(0.125);
    last_lr = report.lr;
#if HAS_METRICS
    telemetry.record(report, engine.param_reports(), {.loss = 1.5, .tokens = 7});
#endif
    steering.after_step({.step = step, .loss = 1.5, .seconds = 0.01, .tokens_per_second = 700, .report = report});
  }
  steering.finish();
  mailbox.close("the job has ended");  // if the command never came through
  caller.join();
  expect(last_lr == 0.5, "the learning rate is the one that was sent");
  expect(answer.kind == control::Answer::Kind::accepted, "the command was accepted");
#if HAS_METRICS
  const std::string page = telemetry.page();
  expect(page.find("regatta_loss{") != std::string::npos, "the page has the trainer's loss");
  expect(page.find("regatta_setting_changes_total{job=\"mine\",rank=\"0\"") != std::string::npos,
         "changes are counted");
  expect(page.find("regatta_learning_rate{job=\"mine\",rank=\"0\"") != std::string::npos,
         "the page has the job's name");
#endif
}

}  // namespace

int main(int, char** arguments) {
  try {
    train(arguments[1]);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  if (failures == 0) std::printf("observed as it should be\n");
  return failures;
}
