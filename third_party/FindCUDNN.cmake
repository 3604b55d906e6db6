# CUDNN::frontend, CUDNN_VERSION: cuDNN's headers and those of its frontend, from CUDNN_HOME, the CUDA toolkit, the
# system, or the wheels that `scripts/setup.sh --cuda` puts into .venv-cuda. Programs load the library when they use it.
file(GLOB cudnn_wheels ${PROJECT_SOURCE_DIR}/.venv-cuda/lib/python3*/site-packages/nvidia/cudnn)
file(GLOB cudnn_frontend_wheels ${PROJECT_SOURCE_DIR}/.venv-cuda/lib/python3*/site-packages)
find_path(CUDNN_INCLUDE_DIR cudnn_graph.h
          HINTS $ENV{CUDNN_HOME}/include ${CUDAToolkit_INCLUDE_DIRS} PATHS ${cudnn_wheels} PATH_SUFFIXES include)
find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
          HINTS $ENV{CUDNN_HOME}/include ${CUDAToolkit_INCLUDE_DIRS} PATHS ${cudnn_frontend_wheels} PATH_SUFFIXES include)
# Where the library is looked for first; the loader's own places come after it.
find_path(CUDNN_LIBRARY_DIR NAMES libcudnn.so.9
          HINTS ${CUDNN_INCLUDE_DIR}/../lib $ENV{CUDNN_HOME}/lib ${CUDAToolkit_LIBRARY_DIR} PATHS ${cudnn_wheels} PATH_SUFFIXES lib)
foreach(header cudnn_version.h cudnn_version_v9.h)
  if(CUDNN_INCLUDE_DIR AND NOT CUDNN_VERSION AND EXISTS ${CUDNN_INCLUDE_DIR}/${header})
    file(STRINGS ${CUDNN_INCLUDE_DIR}/${header} cudnn_lines REGEX "^#define CUDNN_(MAJOR|MINOR|PATCHLEVEL) +[0-9]+")
    string(REGEX REPLACE "[^0-9;]" "" cudnn_lines "${cudnn_lines}")
    string(REPLACE ";" "." CUDNN_VERSION "${cudnn_lines}")
  endif()
endforeach()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CUDNN REQUIRED_VARS CUDNN_INCLUDE_DIR CUDNN_FRONTEND_INCLUDE_DIR VERSION_VAR CUDNN_VERSION)
mark_as_advanced(CUDNN_INCLUDE_DIR CUDNN_FRONTEND_INCLUDE_DIR CUDNN_LIBRARY_DIR)
if(CUDNN_FOUND AND NOT TARGET CUDNN::frontend)
  add_library(CUDNN::frontend INTERFACE IMPORTED)
  target_include_directories(CUDNN::frontend SYSTEM INTERFACE ${CUDNN_FRONTEND_INCLUDE_DIR} ${CUDNN_INCLUDE_DIR})
endif()
