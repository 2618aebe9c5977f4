# OpenBLAS with its C interface: the target RegattaBlas::RegattaBlas, RegattaBlas_FOUND, RegattaBlas_VERSION.
find_path(RegattaBlas_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas openblas-openmp openblas-pthread)
find_library(RegattaBlas_LIBRARY NAMES openblas)
find_package(OpenMP QUIET COMPONENTS CXX)
mark_as_advanced(RegattaBlas_INCLUDE_DIR RegattaBlas_LIBRARY)

set(RegattaBlas_VERSION "")
if(RegattaBlas_INCLUDE_DIR AND EXISTS ${RegattaBlas_INCLUDE_DIR}/openblas_config.h)
  file(STRINGS ${RegattaBlas_INCLUDE_DIR}/openblas_config.h _regatta_line REGEX "OPENBLAS_VERSION")
  string(REGEX MATCH "[0-9]+[.][0-9.]+[0-9]" RegattaBlas_VERSION "${_regatta_line}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RegattaBlas REQUIRED_VARS RegattaBlas_LIBRARY RegattaBlas_INCLUDE_DIR OpenMP_CXX_FOUND
                                  VERSION_VAR RegattaBlas_VERSION)
if(RegattaBlas_FOUND AND NOT TARGET RegattaBlas::RegattaBlas)
  add_library(RegattaBlas::RegattaBlas UNKNOWN IMPORTED)
  set_target_properties(RegattaBlas::RegattaBlas PROPERTIES
    IMPORTED_LOCATION ${RegattaBlas_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${RegattaBlas_INCLUDE_DIR}
    # A flag, not a path: LibTorch with CUDA brings an OpenMP of its own, and a path to the other would contradict it.
    INTERFACE_COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CXX>:${OpenMP_CXX_FLAGS}>"
    INTERFACE_LINK_LIBRARIES "${OpenMP_CXX_FLAGS}")
endif()
