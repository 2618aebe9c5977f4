# NCCL: the target RegattaNccl::RegattaNccl, RegattaNccl_FOUND, RegattaNccl_VERSION. Needs CUDA.
#
# REGATTA_NCCL_DIR or NCCL_HOME names its folder; otherwise it is looked for in the package nvidia-nccl-cu* beside the torch that
# REGATTA_TORCH_DIR names or of the active Python, because a process has one NCCL and torch brings its own; then where
# scripts/bootstrap puts it, beside CUDA, and where the system keeps libraries.
set(REGATTA_NCCL_DIR "" CACHE PATH "Folder of NCCL (with include and lib); empty to look for one")
set(_regatta_nccl_places ${REGATTA_NCCL_DIR} $ENV{NCCL_HOME})
find_program(REGATTA_PYTHON NAMES python3 python)
mark_as_advanced(REGATTA_PYTHON)
if(REGATTA_PYTHON AND NOT REGATTA_NCCL_DIR)
  execute_process(COMMAND ${REGATTA_PYTHON} -c "import importlib.util as u
s = u.find_spec('nvidia.nccl')
print(list(s.submodule_search_locations)[0])"
                  OUTPUT_VARIABLE _regatta_python_nccl OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  list(APPEND _regatta_nccl_places ${_regatta_python_nccl})
endif()
if(REGATTA_TORCH_DIR)
  list(PREPEND _regatta_nccl_places ${REGATTA_TORCH_DIR}/../nvidia/nccl)
endif()
list(APPEND _regatta_nccl_places ${CMAKE_CURRENT_LIST_DIR}/../.deps/cuda/nvidia/nccl)
find_path(REGATTA_NCCL_INCLUDE_DIR nccl.h HINTS ${_regatta_nccl_places} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
find_library(REGATTA_NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${_regatta_nccl_places} ${CUDAToolkit_LIBRARY_DIR}
             PATH_SUFFIXES lib lib64)
mark_as_advanced(REGATTA_NCCL_INCLUDE_DIR REGATTA_NCCL_LIBRARY)
set(RegattaNccl_VERSION "")
if(REGATTA_NCCL_INCLUDE_DIR)
  file(STRINGS ${REGATTA_NCCL_INCLUDE_DIR}/nccl.h _regatta_nccl_lines REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE ".*NCCL_MAJOR ([0-9]+).*NCCL_MINOR ([0-9]+).*NCCL_PATCH ([0-9]+).*" "\\1.\\2.\\3" RegattaNccl_VERSION
                       "${_regatta_nccl_lines}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RegattaNccl REQUIRED_VARS REGATTA_NCCL_LIBRARY REGATTA_NCCL_INCLUDE_DIR CUDAToolkit_FOUND
                                  VERSION_VAR RegattaNccl_VERSION)
if(RegattaNccl_FOUND AND NOT TARGET RegattaNccl::RegattaNccl)
  add_library(RegattaNccl::RegattaNccl UNKNOWN IMPORTED)
  set_target_properties(RegattaNccl::RegattaNccl PROPERTIES IMPORTED_LOCATION ${REGATTA_NCCL_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES "${REGATTA_NCCL_INCLUDE_DIR}")
  target_link_libraries(RegattaNccl::RegattaNccl INTERFACE CUDA::cudart_static)
endif()
