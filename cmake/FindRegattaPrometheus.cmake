# What metrics need: prometheus-cpp's core and cpp-httplib. The target RegattaPrometheus::RegattaPrometheus.
find_package(prometheus-cpp CONFIG QUIET)
find_path(RegattaPrometheus_HTTPLIB_DIR httplib.h)
# Debian compiles it into a library; upstream's single header needs none.
find_library(RegattaPrometheus_HTTPLIB_LIBRARY cpp-httplib)
mark_as_advanced(RegattaPrometheus_HTTPLIB_DIR RegattaPrometheus_HTTPLIB_LIBRARY)
set(RegattaPrometheus_VERSION "${prometheus-cpp_VERSION}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RegattaPrometheus REQUIRED_VARS prometheus-cpp_FOUND RegattaPrometheus_HTTPLIB_DIR
                                  VERSION_VAR RegattaPrometheus_VERSION)

if(RegattaPrometheus_FOUND AND NOT TARGET RegattaPrometheus::RegattaPrometheus)
  add_library(RegattaPrometheus::RegattaPrometheus INTERFACE IMPORTED)
  target_link_libraries(RegattaPrometheus::RegattaPrometheus INTERFACE prometheus-cpp::core Threads::Threads)
  target_include_directories(RegattaPrometheus::RegattaPrometheus SYSTEM INTERFACE ${RegattaPrometheus_HTTPLIB_DIR})
  if(RegattaPrometheus_HTTPLIB_LIBRARY)
    target_link_libraries(RegattaPrometheus::RegattaPrometheus INTERFACE ${RegattaPrometheus_HTTPLIB_LIBRARY})
  endif()
endif()
