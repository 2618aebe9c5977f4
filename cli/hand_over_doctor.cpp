#include "cli/commands.h"
#include "cli/hand_over.h"

namespace regatta::cli {

void add_doctor(CLI::App& app) { hand_over(app, "doctor", doctor_description); }

}  // namespace regatta::cli
