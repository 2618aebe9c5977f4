# Arrows point down: reads every include line of the tree under ROOT and fails, naming file and line, on one that the layer
# table does not allow, or on a third-party header outside the folders that wrap it.
#
#   cmake -DROOT=path -P tests/layering_test.cmake
cmake_minimum_required(VERSION 3.25)

# LAYER_<folder>: what its files may include besides themselves. The most specific folder of a file counts.
set(runtime_base runtime/error.h runtime/log.h runtime/stopwatch.h runtime/version.h)
set(LAYER_sharding "")
set(LAYER_kernels sharding/geometry.h sharding/dtype.h)
set(LAYER_runtime ${runtime_base})
set(LAYER_runtime/device ${runtime_base} sharding/ kernels/)
set(LAYER_runtime/transport ${runtime_base} sharding/ runtime/device/)
set(LAYER_runtime/rules ${runtime_base} sharding/ kernels/ runtime/device/)
set(LAYER_runtime/checkpoint ${runtime_base} sharding/ runtime/device/ runtime/transport/)
set(LAYER_runtime/engine ${LAYER_runtime/checkpoint} kernels/ runtime/rules/ runtime/checkpoint/)
set(LAYER_runtime/c ${LAYER_runtime/engine} runtime/engine/ regatta.h)
set(LAYER_runtime/torch ${LAYER_runtime/engine} runtime/engine/)
set(LAYER_runtime/control ${LAYER_runtime/engine} runtime/engine/)
set(LAYER_runtime/telemetry ${LAYER_runtime/engine} runtime/engine/)
set(LAYER_cli sharding/ kernels/ runtime/)
set(LAYER_bench sharding/ kernels/ runtime/ cli/)
set(LAYER_examples sharding/ kernels/ runtime/)
set(LAYER_tests sharding/ kernels/ runtime/ cli/ bench/)
set(layers
    runtime/device runtime/transport runtime/rules runtime/checkpoint runtime/engine runtime/c runtime/torch
    runtime/control runtime/telemetry runtime sharding kernels cli bench examples tests)

# Pattern of an angle-bracket include, and the folders or files that may have it.
set(third_party
    "mpi\\.h=runtime/transport/mpi/|runtime/c/|tests/|bench/|examples/"
    "nccl\\.h=runtime/transport/nccl/|tests/"
    "cuda.*=runtime/device/|kernels/cuda/|runtime/transport/nccl/|tests/|bench/"
    "(torch|ATen|c10)/.*=runtime/torch/|cli/finetune|tests/|bench/|examples/"
    "(grpc|grpcpp|regatta/v1)/.*=runtime/control/|cli/ctl|tests/"
    "prometheus/.*=runtime/telemetry/|tests/"
    "httplib\\.h=runtime/telemetry/|tests/"
    "nlohmann/.*=runtime/checkpoint/|runtime/torch/|runtime/telemetry/|runtime/control/|cli/|tests/|bench/"
    "(cblas|omp)\\.h=kernels/cpu/openblas_matmul.cpp"
    "spdlog/.*=runtime/log.cpp"
    "fmt/.*=cli/|bench/|tests/|examples/"
    "CLI/.*=cli/|bench/|tests/"
    "gtest/.*=tests/"
    "gmock/.*=tests/"
    "benchmark/.*=bench/")

if(NOT IS_DIRECTORY "${ROOT}")
  message(FATAL_ERROR "ROOT is '${ROOT}'; expected the folder of the repository")
endif()
set(violations 0)
set(files_read 0)
set(includes_read 0)

macro(violation file line why)
  math(EXPR violations "${violations} + 1")
  message(SEND_ERROR "${file}: ${line}: ${why}")
endmacro()

set(files "")
foreach(top sharding kernels runtime cli bench examples tests)
  foreach(ending h cpp cc cu cuh inc in)
    file(GLOB_RECURSE found LIST_DIRECTORIES false RELATIVE "${ROOT}" "${ROOT}/${top}/*.${ending}")
    list(APPEND files ${found})
  endforeach()
endforeach()

foreach(file IN LISTS files)
  # An outside project includes what is installed; it has no layer.
  if(file MATCHES "^tests/package/")
    continue()
  endif()
  set(layer "")
  foreach(candidate IN LISTS layers)
    if(NOT layer AND file MATCHES "^${candidate}/")
      set(layer ${candidate})
    endif()
  endforeach()
  math(EXPR files_read "${files_read} + 1")

  file(STRINGS "${ROOT}/${file}" lines REGEX "^[ \t]*#[ \t]*include[ \t]*[<\"]")
  foreach(line IN LISTS lines)
    math(EXPR includes_read "${includes_read} + 1")
    if(line MATCHES "include[ \t]*\"([^\"]+)\"")
      set(header "${CMAKE_MATCH_1}")
      set(allowed OFF)
      if(layer STREQUAL "runtime")
        # Files directly in runtime/ see one another only.
        string(REGEX MATCH "^runtime/[^/]+$" own "${header}")
      else()
        string(FIND "${header}" "${layer}/" at)
        string(COMPARE EQUAL "${at}" "0" own)
      endif()
      if(own)
        set(allowed ON)
      endif()
      foreach(target IN LISTS LAYER_${layer})
        string(FIND "${header}" "${target}" at)
        if(at EQUAL 0)
          set(allowed ON)
        endif()
      endforeach()
      if(NOT allowed)
        violation(${file} "${line}" "${layer}/ may not include it (see the layer table in CONTRIBUTING.md)")
      endif()
    elseif(line MATCHES "include[ \t]*<([^>]+)>")
      set(header "${CMAKE_MATCH_1}")
      foreach(entry IN LISTS third_party)
        string(REGEX MATCH "^(.*)=([^=]*)$" _ "${entry}")
        set(pattern "${CMAKE_MATCH_1}")
        string(REPLACE "|" ";" homes "${CMAKE_MATCH_2}")
        if(header MATCHES "^${pattern}$")
          set(allowed OFF)
          foreach(home IN LISTS homes)
            string(FIND "${file}" "${home}" at)
            if(at EQUAL 0)
              set(allowed ON)
            endif()
          endforeach()
          if(NOT allowed)
            violation(${file} "${line}" "only ${homes} may include <${header}>")
          endif()
        endif()
      endforeach()
    endif()
  endforeach()
endforeach()

if(files_read EQUAL 0)
  message(FATAL_ERROR "no source file was found under ${ROOT}")
endif()
message(STATUS "${files_read} files, ${includes_read} includes, ${violations} upward arrows")
