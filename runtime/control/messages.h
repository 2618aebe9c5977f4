#pragma once
// Facts and answers as messages.

#include <grpcpp/grpcpp.h>
#include <regatta/v1/control.pb.h>

#include "runtime/control/mailbox.h"

namespace regatta::control {

void fill(v1::Step& message, const StepFacts& facts);
void fill(v1::Status& message, const Mailbox::View& view, const JobFacts& job);
void fill(v1::Plan& message, const JobFacts& job);
/// The status to return with the reply.
grpc::Status fill(v1::CommandReply& message, const Answer& answer);

}  // namespace regatta::control
