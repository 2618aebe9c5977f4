# The CUDA compiler and runtime: RegattaCuda_FOUND, RegattaCuda_VERSION, the language CUDA and CUDA::cudart_static.
#
# CMAKE_CUDA_COMPILER or CUDACXX names the compiler; otherwise nvcc is looked for on the path and where its installer puts
# it. CMAKE_CUDA_ARCHITECTURES names what is built: by default code for Ampere, Hopper and Blackwell servers, and PTX of
# the newest for what comes after.

set(RegattaCuda_FOUND OFF)
set(RegattaCuda_VERSION "")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(REGATTA_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES bin)
  mark_as_advanced(REGATTA_NVCC)
  if(REGATTA_NVCC)
    set(ENV{CUDACXX} ${REGATTA_NVCC})
    set(_regatta_set_cudacxx ON)
  endif()
endif()
if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;100" CACHE STRING "What the CUDA kernels are compiled for")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit QUIET)
    set(REGATTA_CUDA_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES})
    set(RegattaCuda_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
endif()
if(_regatta_set_cudacxx)
  unset(ENV{CUDACXX})
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RegattaCuda REQUIRED_VARS CMAKE_CUDA_COMPILER CUDAToolkit_FOUND
                                  VERSION_VAR RegattaCuda_VERSION)
