# What every target of ours shares: the standard, the include root, and floating point that no compiler rearranges.
option(REGATTA_WARNINGS_AS_ERRORS "Stop at compiler warnings (presets for development)" OFF)
set(REGATTA_SANITIZE "" CACHE STRING "Sanitizers, as in -fsanitize= (presets asan and tsan); empty for none")

add_library(regatta_settings INTERFACE)
target_compile_features(regatta_settings INTERFACE cxx_std_20)
target_include_directories(regatta_settings INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                                      $<INSTALL_INTERFACE:include/regatta>)

set(options -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-missing-field-initializers)  # Param{.name = ...} is how they are meant
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 sees overlapping copies in "x" + std::string(...) where there are none.
  list(APPEND options -Wno-restrict)
endif()
if(REGATTA_WARNINGS_AS_ERRORS)
  list(APPEND options -Werror)
endif()
if(REGATTA_SANITIZE)
  list(APPEND options -fsanitize=${REGATTA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(regatta_settings INTERFACE $<BUILD_INTERFACE:-fsanitize=${REGATTA_SANITIZE}>)
endif()
foreach(option IN LISTS options)
  target_compile_options(regatta_settings INTERFACE $<BUILD_INTERFACE:${option}>)
endforeach()
