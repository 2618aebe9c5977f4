# Installs BUILD aside, then configures, builds and runs the project in CONSUMER, around the program QUICKSTART, and the C
# project in C_CONSUMER, with nothing but that installation.
cmake_minimum_required(VERSION 3.25)

function(step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
step("installation" ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
# Moved after installing: no path of the build may be left in the package.
file(RENAME ${WORK}/prefix ${WORK}/moved)
file(COPY ${CONSUMER}/ ${QUICKSTART} DESTINATION ${WORK}/source)
step("configuration" ${CMAKE_COMMAND} -S ${WORK}/source -B ${WORK}/build -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${WORK}/moved
     -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=${BUILD_TYPE} -DHEADERS=${HEADERS} -DSANITIZE=${SANITIZE})
step("build" ${CMAKE_COMMAND} --build ${WORK}/build)
step("run" ${WORK}/build/consumer)
message(STATUS "consumer says: ${output}")
if(NOT output MATCHES "equal on 1 and 2 ranks")
  message(FATAL_ERROR "the consumer ran but did not say 'equal on 1 and 2 ranks': ${output}")
endif()
step("run of an observed trainer" ${WORK}/build/observed ${WORK})
message(STATUS "observed trainer says: ${output}")
if(NOT output MATCHES "observed as it should be")
  message(FATAL_ERROR "the observed trainer ran but did not say 'observed as it should be': ${output}")
endif()
step("configuration in C" ${CMAKE_COMMAND} -S ${C_CONSUMER} -B ${WORK}/build-c -G ${GENERATOR}
     -DCMAKE_PREFIX_PATH=${WORK}/moved -DCMAKE_C_COMPILER=${CC} -DCMAKE_BUILD_TYPE=${BUILD_TYPE} -DSANITIZE=${SANITIZE})
step("build in C" ${CMAKE_COMMAND} --build ${WORK}/build-c)
step("run in C" ${WORK}/build-c/c_consumer)
message(STATUS "C consumer says: ${output}")
if(NOT output MATCHES "step 1 made W")
  message(FATAL_ERROR "the C consumer ran but did not say 'step 1 made W': ${output}")
endif()
step("installed program" ${WORK}/moved/bin/regatta --version)
