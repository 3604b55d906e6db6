# Settles whether the CUDA backend takes part, and says so in one line.
set(DEGU_CUDA_ENABLED OFF)
if(NOT DEGU_CUDA MATCHES "^(AUTO|ON|OFF|EMULATED)$")
  message(FATAL_ERROR "DEGU_CUDA is ${DEGU_CUDA}, must be AUTO, ON, OFF or EMULATED")
endif()
if(DEGU_CUDA STREQUAL "EMULATED")
  # Kernels and all that calls them, compiled by the C++ compiler against a stand-in for the toolkit.
  if(DEGU_SANITIZE)
    message(FATAL_ERROR "DEGU_CUDA=EMULATED changes stacks behind the back of a sanitizer; leave DEGU_SANITIZE empty")
  endif()
  add_subdirectory(${PROJECT_SOURCE_DIR}/tests/cuda_emulation ${PROJECT_BINARY_DIR}/tests/cuda_emulation)
  set(DEGU_CUDA_RUNTIME $<BUILD_INTERFACE:degu_cuda_emulation>)
  set(DEGU_CUDA_ENABLED ON)
elseif(NOT DEGU_CUDA STREQUAL "OFF")
  # nvcc is rarely on the PATH of a fresh shell.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(DEGU_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    if(DEGU_NVCC)
      set(CMAKE_CUDA_COMPILER ${DEGU_NVCC})
    endif()
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a CACHE STRING "GPU generations: 90a is Hopper with all its instructions")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(CCACHE_PROGRAM AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
    endif()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know that nvcc 12 and later have it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    find_package(CUDAToolkit REQUIRED)
    # FMT_USE_CONSTEXPR: fmt 9 switches constexpr off under nvcc and needs it nevertheless.
    # As for the host: nothing is fused that the source does not fuse, every warning is an error. The host's
    # pedantry stays out: what nvcc generates does not hold it.
    set(DEGU_CUDA_OPTIONS --expt-relaxed-constexpr -fmad=false -Werror=all-warnings -DFMT_USE_CONSTEXPR=1
                          "SHELL:-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-Wno-restrict,-Werror")
    set(DEGU_CUDA_RUNTIME CUDA::cudart_static)
    set(DEGU_CUDA_ENABLED ON)
  elseif(DEGU_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DEGU_CUDA is ON and no CUDA compiler was found; set CUDACXX or CUDA_HOME, or use DEGU_CUDA=OFF")
  endif()
endif()
# Products of warpgroups exist on Hopper alone; a build for other GPUs too takes those of warps everywhere.
include(CMakeDependentOption)
cmake_dependent_option(DEGU_CUDA_WARPGROUPS "Use the tensor-core products of warpgroups" ON
                       "CMAKE_CUDA_ARCHITECTURES STREQUAL 90a OR DEGU_CUDA STREQUAL EMULATED" OFF)
# Collectives between GPUs; without it ranks exchange by way of the host.
option(DEGU_NCCL "Use NCCL where it is found" ON)
if(DEGU_CUDA_ENABLED AND DEGU_NCCL AND NOT DEGU_CUDA STREQUAL "EMULATED")
  find_package(NCCL QUIET)  # third_party/FindNCCL.cmake
endif()
# Attention of training runs that need not be reproducible (train.attention: cudnn).
option(DEGU_CUDNN "Use cuDNN where its headers and its frontend's are found" ON)
if(DEGU_CUDA_ENABLED AND DEGU_CUDNN AND NOT DEGU_CUDA STREQUAL "EMULATED")
  find_package(CUDNN QUIET)  # third_party/FindCUDNN.cmake
endif()
if(DEGU_CUDA STREQUAL "EMULATED")
  message(STATUS "CUDA backend: emulated on the host, for tests")
elseif(DEGU_CUDA_ENABLED)
  message(STATUS "CUDA backend: on (${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES})")
else()
  message(STATUS "CUDA backend: off (DEGU_CUDA=${DEGU_CUDA})")
endif()
# What kernels/cuda/ compiles hangs below this target; scripts/test.sh builds it where a CUDA compiler is.
add_custom_target(degu_cuda_objects)
