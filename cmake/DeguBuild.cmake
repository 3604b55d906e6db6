# Compiler settings and the two functions every room's CMakeLists.txt uses.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # base_dir makes paths relative, so that a fresh clone elsewhere hits the same cache.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE_PROGRAM})
endif()

add_library(degu_settings INTERFACE)
target_include_directories(
  degu_settings INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
                          $<INSTALL_INTERFACE:include/degu>)
# Members that a designated initialiser leaves out are meant to be zero: no warning for them.
# -Wrestrict of GCC 12 fires on `"text" + std::string` (its bug 105651).
# Sums are written in the order they are meant: nothing may contract or reassociate them behind our back.
set(DEGU_CXX_OPTIONS -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wno-restrict
                     -Wno-missing-field-initializers -Werror -ffp-contract=off)
target_compile_options(degu_settings INTERFACE $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:${DEGU_CXX_OPTIONS}>>)
target_compile_features(degu_settings INTERFACE cxx_std_20)
if(DEGU_SANITIZE)
  # GCC 12 takes the sanitizers' own code for uses of uninitialised memory, in the standard library too.
  target_compile_options(degu_settings INTERFACE -Wno-maybe-uninitialized -fsanitize=${DEGU_SANITIZE} -fno-omit-frame-pointer
                                                 -fno-sanitize-recover=all)
  target_link_options(degu_settings INTERFACE -fsanitize=${DEGU_SANITIZE})
endif()

# Code that waits for other code, the commands and the tests, compiles half again as fast with less optimisation.
set(DEGU_COLD_OPTIONS $<$<CONFIG:Release>:-O1>)

# degu_precompiled(NAME HEADERS header... [DEPENDS target...] [OPTIONS option...])
# Headers of others that are parsed once for all targets that take them by degu_use_precompiled(TARGET NAME): a quarter
# of what a room's sources take to compile, more of a small test's. Sources include what they use all the same: lint and
# -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON compile them without.
function(degu_precompiled name)
  cmake_parse_arguments(ARG "" "" "HEADERS;DEPENDS;OPTIONS" ${ARGN})
  set(source ${PROJECT_BINARY_DIR}/${name}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "// Compiled for its precompiled header.\n")
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${source})
  target_link_libraries(${name} PRIVATE degu_settings ${ARG_DEPENDS})
  target_compile_options(${name} PRIVATE ${ARG_OPTIONS})
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
endfunction()
function(degu_use_precompiled target name)
  if(TARGET ${name})
    target_precompile_headers(${target} REUSE_FROM ${name})
    # GCC 12 forgets which of these headers are the system's, and warns of what it misunderstands in std::string.
    target_compile_options(${target} PRIVATE -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread)
  endif()
endfunction()
set(DEGU_PRECOMPILED_HEADERS <algorithm> <filesystem> <functional> <map> <memory> <string> <vector> <fmt/format.h>)

# degu_buildable(RESULT KIND NAME target...)
# Sets RESULT to ON when all the targets exist. Otherwise NAME, of KIND rooms, libraries, programs or tests, is left out,
# and so is whatever depends on it; cmake/DeguSummary.cmake prints what is left out for want of which package.
# A target that no package of third_party/Dependencies.cmake and nothing left out accounts for is an error.
# Packages of rooms are noted in DEGU_LINKED: an installed degu needs them again.
function(degu_buildable result kind name)
  set(causes)
  foreach(target IN LISTS ARGN)
    get_property(package GLOBAL PROPERTY DEGU_PACKAGE_OF_${target})
    get_property(inherited GLOBAL PROPERTY DEGU_CAUSES_OF_${target})
    if(TARGET ${target})
      if(package AND kind STREQUAL "rooms")
        set_property(GLOBAL APPEND PROPERTY DEGU_LINKED ${package})
      endif()
    elseif(package OR inherited)
      list(APPEND causes ${package} ${inherited})
    else()
      message(FATAL_ERROR "${name} depends on ${target}, which is not declared before it")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES causes)
  set_property(GLOBAL PROPERTY DEGU_CAUSES_OF_${name} ${causes})
  foreach(package IN LISTS causes)
    set_property(GLOBAL APPEND PROPERTY "DEGU_LEFT_OUT_${package}_${kind}" ${name})
  endforeach()
  if(causes)
    set(${result} OFF PARENT_SCOPE)
  else()
    set(${result} ON PARENT_SCOPE)
  endif()
endfunction()

# degu_room(NAME SOURCES file... [DEPENDS target...] [PRIVATE_DEPENDS target...])
# One static library per folder of src/: degu_NAME. DEPENDS are the rooms its headers use.
function(degu_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  degu_buildable(buildable rooms degu_${name} ${ARG_DEPENDS} ${ARG_PRIVATE_DEPENDS})
  if(NOT buildable)
    set_property(GLOBAL APPEND PROPERTY DEGU_ROOMS_LEFT_OUT degu_${name})
    return()
  endif()
  add_library(degu_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(degu_${name} PUBLIC degu_settings ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS})
  degu_use_precompiled(degu_${name} degu_precompiled_rooms)
  set_target_properties(degu_${name} PROPERTIES EXPORT_NAME ${name})  # degu::base, degu::tensor, …
  set_property(GLOBAL APPEND PROPERTY DEGU_ROOMS degu_${name})
endfunction()

# degu_test(NAME SOURCES file... [DEPENDS target...] [PROGRAMS target...] [DEFINITIONS name=value...] [OPTIONS option...]
#           [LABELS label...] [RANKS n...])
# One Catch2 binary; PROGRAMS are those it starts. With RANKS it runs under mpirun at each of those sizes instead of
# on its own. Labels: unit (default), mpi, slow (not run under sanitizers), tsan (also run under the thread sanitizer),
# emulated (also run where the CUDA backend is emulated, but for the cases that are tagged long).
add_custom_target(degu_tsan_tests)
add_custom_target(degu_emulated_tests)
# Root and containers are usual on the machines this runs on; two ranks may share one core in tests.
set(DEGU_MPI_FLAGS --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 CACHE STRING "mpirun flags of the tests")
function(degu_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PROGRAMS;DEFINITIONS;OPTIONS;LABELS;RANKS" ${ARGN})
  set(support degu_test_support)
  if(ARG_RANKS)
    set(support degu_mpi_test_support)
  endif()
  degu_buildable(buildable tests ${name} ${ARG_DEPENDS} ${ARG_PROGRAMS} ${support})
  if(NOT buildable)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE degu_settings ${ARG_DEPENDS} ${support})
  target_compile_definitions(${name} PRIVATE ${ARG_DEFINITIONS})
  target_compile_options(${name} PRIVATE ${DEGU_COLD_OPTIONS} ${ARG_OPTIONS})
  degu_use_precompiled(${name} degu_precompiled_tests)
  if(ARG_PROGRAMS)
    add_dependencies(${name} ${ARG_PROGRAMS})
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  foreach(also tsan emulated)
    if(also IN_LIST ARG_LABELS)
      add_dependencies(degu_${also}_tests ${name})
    endif()
  endforeach()
  if(ARG_RANKS)
    foreach(ranks IN LISTS ARG_RANKS)
      add_test(NAME ${name}_${ranks}_ranks
               COMMAND ${MPIEXEC_EXECUTABLE} ${DEGU_MPI_FLAGS} -n ${ranks} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}_${ranks}_ranks PROPERTIES LABELS "mpi" TIMEOUT 600 PROCESSORS 2)
    endforeach()
  else()
    set(cases)
    if(DEGU_CUDA STREQUAL "EMULATED")
      set(cases "~[long]")
    endif()
    add_test(NAME ${name} COMMAND ${name} ${cases})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900)
  endif()
endfunction()
