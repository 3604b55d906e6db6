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
  # Instrumented code makes GCC 12 take std::regex (in Catch2) for uninitialised.
  target_compile_options(degu_settings INTERFACE -Wno-maybe-uninitialized -fsanitize=${DEGU_SANITIZE} -fno-omit-frame-pointer
                                                 -fno-sanitize-recover=all)
  # GCC 12 takes the sanitizers' own code for uses of uninitialised memory, in the standard library too.
  target_compile_options(degu_settings INTERFACE -Wno-maybe-uninitialized)
  target_link_options(degu_settings INTERFACE -fsanitize=${DEGU_SANITIZE})
endif()

# degu_room(NAME SOURCES file... [DEPENDS target...] [PRIVATE_DEPENDS target...])
# One static library per folder of src/: degu_NAME. DEPENDS are the rooms its headers use.
function(degu_room name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  add_library(degu_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(degu_${name} PUBLIC degu_settings ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS})
  set_target_properties(degu_${name} PROPERTIES EXPORT_NAME ${name})  # degu::base, degu::tensor, …
  set_property(GLOBAL APPEND PROPERTY DEGU_ROOMS degu_${name})
endfunction()

# degu_test(NAME SOURCES file... DEPENDS target... [LABELS label...] [RANKS n...])
# One Catch2 binary. With RANKS it runs under mpirun at each of those sizes instead of on its own. Labels:
# unit (default), mpi, slow (not run under sanitizers), tsan (also run under the thread sanitizer).
add_custom_target(degu_tsan_tests)
function(degu_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;LABELS;RANKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE degu_settings ${ARG_DEPENDS}
                                        $<IF:$<BOOL:${ARG_RANKS}>,degu_mpi_test_support,degu_test_support>)
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if("tsan" IN_LIST ARG_LABELS)
    add_dependencies(degu_tsan_tests ${name})
  endif()
  if(ARG_RANKS)
    foreach(ranks IN LISTS ARG_RANKS)
      add_test(NAME ${name}_${ranks}_ranks
               COMMAND ${MPIEXEC_EXECUTABLE} ${DEGU_MPI_FLAGS} -n ${ranks} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}_${ranks}_ranks PROPERTIES LABELS "mpi" TIMEOUT 600 PROCESSORS 2)
    endforeach()
  else()
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900)
  endif()
endfunction()
