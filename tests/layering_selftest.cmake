# Proves that layering_test.cmake finds what it is there for: plants one violation at a time in a small tree.
#
#   cmake -DSCRIPT=layering_test.cmake -DWORK=folder -P tests/layering_selftest.cmake
cmake_minimum_required(VERSION 3.25)

function(check name expected_fragment file include)
  set(root "${WORK}/${name}")
  file(REMOVE_RECURSE "${root}")
  file(WRITE "${root}/sharding/plan.h" "#pragma once\n#include <vector>\n")
  file(WRITE "${root}/runtime/engine/engine.cpp" "#include \"runtime/rules/rule.h\"\n#include \"sharding/plan.h\"\n")
  file(WRITE "${root}/${file}" "// A comment before it.\n#include ${include}\n")
  execute_process(COMMAND "${CMAKE_COMMAND}" "-DROOT=${root}" -P "${SCRIPT}" RESULT_VARIABLE result OUTPUT_VARIABLE out
                  ERROR_VARIABLE err)
  string(REGEX REPLACE "[ \n]+" " " err "${err}")  # CMake wraps long messages
  if(expected_fragment STREQUAL "passes")
    if(NOT result EQUAL 0)
      message(SEND_ERROR "${name}: expected to pass, but: ${err}")
    endif()
  elseif(result EQUAL 0)
    message(SEND_ERROR "${name}: ${file} includes ${include} and nobody noticed")
  elseif(NOT err MATCHES "${expected_fragment}" OR NOT err MATCHES "${file}")
    message(SEND_ERROR "${name}: expected '${expected_fragment}' and '${file}' in: ${err}")
  endif()
endfunction()

check(clean passes runtime/rules/reg.cpp "\"kernels/kernels.h\"")
check(bottom_looks_up "sharding/ may not" sharding/mesh.cpp "\"kernels/kernels.h\"")
check(kernel_sees_plan "kernels/ may not" kernels/cpu/sweep.cpp "\"sharding/plan.h\"")
check(rule_knows_transport "runtime/rules/ may not" runtime/rules/reg.cpp "\"runtime/transport/transport.h\"")
check(transport_knows_rule "runtime/transport/ may not" runtime/transport/local/local.cpp "\"runtime/rules/rule.h\"")
check(engine_calls_up "runtime/engine/ may not" runtime/engine/step.cpp "\"runtime/torch/adapter.h\"")
check(base_sees_engine "runtime/ may not" runtime/log.cpp "\"runtime/engine/engine.h\"")
check(library_sees_program "runtime/engine/ may not" runtime/engine/step.cpp "\"cli/commands.h\"")
check(relative_include "runtime/engine/ may not" runtime/engine/step.cpp "\"engine.h\"")
check(mpi_outside_its_folder "only runtime/transport/mpi/" runtime/engine/step.cpp "<mpi.h>")
check(torch_outside_the_adapter "only runtime/torch/" runtime/engine/step.cpp "<torch/torch.h>")
check(json_in_sharding "may include <nlohmann" sharding/plan.cpp "<nlohmann/json.hpp>")
