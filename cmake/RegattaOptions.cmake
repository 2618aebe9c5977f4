# Optional dependencies.
#
#   regatta_dependency(MPI PACKAGE MPI COMPONENTS C NAME "MPI" FOR "ranks as processes" INSTALL "libopenmpi-dev")
#
# makes the cache entry REGATTA_WITH_MPI (AUTO, ON or OFF) and sets REGATTA_HAS_MPI to whether it is used. AUTO takes what is
# found; ON stops with a sentence when it isn't found. Folders test REGATTA_HAS_MPI and pick a file or its stand-in.
# The package must set PACKAGE_FOUND and PACKAGE_VERSION; RegattaTorch is our own module that prefers a Python-installed torch.
# A macro, because find modules answer in variables of the caller's scope.

set(REGATTA_SUMMARY "")
set(REGATTA_BUILT_IN "")
set(REGATTA_ENABLED "")

macro(regatta_dependency key)
  cmake_parse_arguments(_dep "" "PACKAGE;NAME;FOR;INSTALL" "COMPONENTS" ${ARGN})
  set(REGATTA_WITH_${key} AUTO CACHE STRING "${_dep_NAME}, for ${_dep_FOR}: AUTO, ON or OFF")
  set_property(CACHE REGATTA_WITH_${key} PROPERTY STRINGS AUTO ON OFF)
  string(TOUPPER "${REGATTA_WITH_${key}}" _dep_wish)
  if(NOT _dep_wish MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "REGATTA_WITH_${key} is '${REGATTA_WITH_${key}}'; expected AUTO, ON or OFF")
  endif()

  set(REGATTA_HAS_${key} OFF)
  set(_dep_version "")
  if(_dep_wish STREQUAL "OFF")
    set(_dep_why "switched off by REGATTA_WITH_${key}")
  else()
    if(_dep_COMPONENTS)
      find_package(${_dep_PACKAGE} QUIET COMPONENTS ${_dep_COMPONENTS})
    else()
      find_package(${_dep_PACKAGE} QUIET)
    endif()
    if(${_dep_PACKAGE}_FOUND)
      set(REGATTA_HAS_${key} ON)
      list(APPEND REGATTA_ENABLED ${key})
      if(${_dep_PACKAGE}_C_LIBRARY_VERSION_STRING)
        # "Open MPI v4.1.4, package: ..." says more than MPI_VERSION, which is the standard's.
        string(REGEX MATCH "[0-9]+[.][0-9.]+" _dep_version "${${_dep_PACKAGE}_C_LIBRARY_VERSION_STRING}")
      elseif(${_dep_PACKAGE}_VERSION)
        set(_dep_version "${${_dep_PACKAGE}_VERSION}")
      endif()
      set(_dep_why "found, used for ${_dep_FOR}")
    elseif(_dep_wish STREQUAL "ON")
      message(FATAL_ERROR "REGATTA_WITH_${key} is ON but ${_dep_NAME} was not found; install it "
                          "(Debian: ${_dep_INSTALL}), point CMAKE_PREFIX_PATH at it, or use AUTO or OFF")
    else()
      set(_dep_why "not found (Debian: ${_dep_INSTALL}); without it: no ${_dep_FOR}")
    endif()
  endif()

  if(REGATTA_HAS_${key})
    set(_dep_bool true)
    set(_dep_state "on ")
  else()
    set(_dep_bool false)
    set(_dep_state "off")
  endif()
  string(APPEND REGATTA_BUILT_IN "    {\"${_dep_NAME}\", ${_dep_bool}, \"${_dep_version}\", \"${_dep_why}\"},\n")
  string(APPEND REGATTA_SUMMARY "\n  ${_dep_NAME}: ${_dep_state} ${_dep_version} - ${_dep_why}")
endmacro()

# Prints what is on, off and why. Called last.
function(regatta_print_summary)
  string(REPLACE ";" ", " commands "${REGATTA_COMMANDS}")
  message(STATUS "Regatta ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}, ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
                 "${REGATTA_SUMMARY}\n  tests: ${REGATTA_BUILD_TESTS}, bench: ${REGATTA_BUILD_BENCH}, examples: "
                 "${REGATTA_BUILD_EXAMPLES}, compiler cache: ${REGATTA_COMPILER_CACHE}")
endfunction()
