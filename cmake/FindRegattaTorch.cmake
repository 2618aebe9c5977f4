# LibTorch: the target RegattaTorch::RegattaTorch, RegattaTorch_FOUND, RegattaTorch_VERSION, RegattaTorch_CUDA (whether this
# LibTorch itself computes on GPUs).
#
# REGATTA_TORCH_DIR names a folder to look in and nowhere else: a torch package folder of a Python installation, an unpacked
# LibTorch, torch.utils.cmake_prefix_path, or a folder with TorchConfig.cmake. Without it a torch that belongs to the active
# Python is preferred when it is recent enough to have the system's C++ ABI; then what find_package finds (Debian: libtorch-dev).
#
# The TorchConfig of a LibTorch with CUDA ends the configuration unless it finds the whole CUDA toolkit of its own version, cuBLAS
# and all, none of which is needed to link against it. So such a LibTorch gets its target here.

set(REGATTA_TORCH_DIR "" CACHE PATH "Folder of the LibTorch or Python torch package to use; empty to look for one")
set(_regatta_python_torch_oldest 2.7)  # earlier wheels were built with the old string ABI

set(_regatta_torch_places "")
if(REGATTA_TORCH_DIR)
  set(_regatta_torch_places ${REGATTA_TORCH_DIR}/share/cmake/Torch ${REGATTA_TORCH_DIR}/Torch ${REGATTA_TORCH_DIR})
  file(GLOB _regatta_site_packages ${REGATTA_TORCH_DIR}/lib/python*/site-packages/torch/share/cmake/Torch)
  list(APPEND _regatta_torch_places ${_regatta_site_packages})
elseif(Torch_DIR)
  set(_regatta_torch_places ${Torch_DIR})
else()
  find_program(REGATTA_PYTHON NAMES python3 python)  # an active environment is in PATH
  mark_as_advanced(REGATTA_PYTHON)
  if(REGATTA_PYTHON)
    # Finds the package without importing it, which would take seconds.
    execute_process(
      COMMAND ${REGATTA_PYTHON} -c "import importlib.util as u, pathlib, re
s = u.find_spec('torch')
p = pathlib.Path(s.origin).parent
print(p.as_posix() + ';' + re.search(r\"__version__ = '([0-9.]+)\", (p / 'version.py').read_text()).group(1))"
      OUTPUT_VARIABLE _regatta_python_torch OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(_regatta_python_torch)
      list(GET _regatta_python_torch 0 _regatta_python_torch_folder)
      list(GET _regatta_python_torch 1 _regatta_python_torch_version)
      if(_regatta_python_torch_version VERSION_GREATER_EQUAL _regatta_python_torch_oldest)
        set(_regatta_torch_places ${_regatta_python_torch_folder}/share/cmake/Torch)
      endif()
    endif()
  endif()
endif()

set(RegattaTorch_CUDA OFF)
foreach(_regatta_place ${_regatta_torch_places})
  if(Torch_FOUND OR NOT EXISTS ${_regatta_place}/TorchConfig.cmake)
    continue()
  endif()
  get_filename_component(_regatta_prefix ${_regatta_place}/../../.. ABSOLUTE)
  set(_regatta_torch_lib ${_regatta_prefix}/lib)
  if(EXISTS ${_regatta_torch_lib}/libtorch_cuda.so)
    set(Torch_FOUND ON)
    set(RegattaTorch_CUDA ON)
    set(TORCH_INCLUDE_DIRS ${_regatta_prefix}/include ${_regatta_prefix}/include/torch/csrc/api/include)
    # Nothing calls into the CUDA library by name: it makes itself known when it is loaded, so it must not be dropped. What it needs
    # in turn (cuDNN, cuBLAS, NCCL) it finds by its own search path.
    set(TORCH_LIBRARIES ${_regatta_torch_lib}/libtorch.so ${_regatta_torch_lib}/libtorch_cpu.so ${_regatta_torch_lib}/libc10.so
                        -Wl,--no-as-needed ${_regatta_torch_lib}/libtorch_cuda.so ${_regatta_torch_lib}/libc10_cuda.so -Wl,--as-needed
                        -Wl,--allow-shlib-undefined)
  else()
    # TorchConfig looks for its libraries and for Caffe2 on the usual paths first, where another installation's may lie.
    list(PREPEND CMAKE_PREFIX_PATH ${_regatta_prefix})
    find_package(Torch QUIET CONFIG PATHS ${_regatta_place} NO_DEFAULT_PATH)
    list(POP_FRONT CMAKE_PREFIX_PATH)
  endif()
endforeach()
if(NOT Torch_FOUND AND REGATTA_TORCH_DIR)
  message(FATAL_ERROR "REGATTA_TORCH_DIR is ${REGATTA_TORCH_DIR}, which holds no TorchConfig.cmake; expected a torch package folder, an "
                      "unpacked LibTorch, or what python3 -c 'import torch; print(torch.utils.cmake_prefix_path)' prints")
elseif(NOT Torch_FOUND)
  find_package(Torch QUIET CONFIG)
  if(TARGET torch_cuda)
    set(RegattaTorch_CUDA ON)
  endif()
endif()

if(Torch_FOUND AND NOT TARGET RegattaTorch::RegattaTorch)
  add_library(RegattaTorch::RegattaTorch INTERFACE IMPORTED)
  target_link_libraries(RegattaTorch::RegattaTorch INTERFACE ${TORCH_LIBRARIES})
  target_include_directories(RegattaTorch::RegattaTorch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
endif()

# Debian's package states no version of its own; the header does.
set(RegattaTorch_VERSION "${Torch_VERSION}")
if(Torch_FOUND AND NOT RegattaTorch_VERSION)
  foreach(_regatta_folder ${TORCH_INCLUDE_DIRS})
    foreach(_regatta_header torch/headeronly/version.h torch/csrc/api/include/torch/version.h torch/version.h)
      if(NOT RegattaTorch_VERSION AND EXISTS ${_regatta_folder}/${_regatta_header})
        file(STRINGS ${_regatta_folder}/${_regatta_header} _regatta_line REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
        string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" RegattaTorch_VERSION
                             "${_regatta_line}")
      endif()
    endforeach()
  endforeach()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RegattaTorch REQUIRED_VARS Torch_FOUND TORCH_LIBRARIES VERSION_VAR RegattaTorch_VERSION)
