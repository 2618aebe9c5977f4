#include "cli/commands.h"
#include "cli/hand_over.h"

namespace regatta::cli {

void add_finetune(CLI::App& app) { hand_over(app, "finetune", finetune_description); }

}  // namespace regatta::cli
