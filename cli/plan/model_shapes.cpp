#include "cli/plan/model_shapes.h"

#include <charconv>

#include "runtime/error.h"

namespace regatta::cli {

finetune::ParamShape parse_shape(const std::string& text) {
  const auto wrong = [&] {
    return Error(Code::invalid_argument,
                 "--shape got '" + text + "'; expected NAME=ROWSxCOLS, for example up=8960x1536");
  };
  const std::size_t equals = text.rfind('=');
  if (equals == 0 || equals == std::string::npos) throw wrong();
  finetune::ParamShape shape{text.substr(0, equals), {}};
  for (const char *at = text.data() + equals + 1, *end = text.data() + text.size(); at < end;) {
    std::int64_t extent = 0;
    const auto [next, error] = std::from_chars(at, end, extent);
    if (error != std::errc{} || extent < 1 || (next < end && *next != 'x')) throw wrong();
    shape.shape.push_back(extent);
    at = next + 1;
  }
  if (shape.shape.empty() || text.back() == 'x') throw wrong();
  return shape;
}

}  // namespace regatta::cli
