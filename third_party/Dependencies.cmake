# Finds what third_party/README.md lists. Nothing is vendored; scripts/setup.sh installs it.
#
# Only fmt and spdlog are needed by everything. Without another package the rooms, programs and tests that use
# it are left out (degu_buildable in cmake/DeguBuild.cmake), and cmake/DeguSummary.cmake prints which. With
# DEGU_REQUIRE_ALL, which the presets set, a missing package is an error. To see what a build without one is
# like: CMAKE_DISABLE_FIND_PACKAGE_<Package>=ON hides it, <Package> being what follows FIND below;
# PKG_CONFIG_EXECUTABLE=/hidden hides every MODULE.

# degu_dependency(NAME [CORE] [TESTS] LICENCE text DEBIAN package TARGET target VERSION variable
#                 FIND Package [arguments of find_package] | MODULE pkg-config's name)
# CORE: never left out. TESTS: only tests use it. TARGET exists once it is found; other CMake files name it.
# Afterwards DEGU_DEPENDENCIES has the name, and DEGU_<name>_VERSION (empty: missing), _LICENCE and _DEBIAN are set.
# A macro, since packages set variables where they are found. An installed degu sets DEGU_LINKED, the names of
# those that its libraries link: all of them and no others are needed then.
set(DEGU_DEPENDENCIES)
set(degu_missing)
set(degu_missing_packages)
find_package(PkgConfig QUIET)
macro(degu_dependency name)
  cmake_parse_arguments(DEP "CORE;TESTS" "LICENCE;DEBIAN;TARGET;VERSION;MODULE" "FIND" ${ARGN})
  set_property(GLOBAL PROPERTY DEGU_PACKAGE_OF_${DEP_TARGET} ${name})
  if((DEFINED DEGU_LINKED AND "${name}" IN_LIST DEGU_LINKED) OR (NOT DEFINED DEGU_LINKED AND (DEGU_TESTS OR NOT DEP_TESTS)))
    if(DEP_MODULE AND PkgConfig_FOUND)
      string(REPLACE "PkgConfig::" "" degu_prefix ${DEP_TARGET})
      pkg_check_modules(${degu_prefix} QUIET IMPORTED_TARGET ${DEP_MODULE})
    elseif(DEP_FIND)
      find_package(${DEP_FIND} QUIET)
    endif()
    list(APPEND DEGU_DEPENDENCIES ${name})
    set(DEGU_${name}_LICENCE "${DEP_LICENCE}")
    set(DEGU_${name}_DEBIAN ${DEP_DEBIAN})
    set(DEGU_${name}_VERSION)
    if(TARGET ${DEP_TARGET})
      set(DEGU_${name}_VERSION "${${DEP_VERSION}}")
      if(NOT DEGU_${name}_VERSION)
        set(DEGU_${name}_VERSION unknown)
      endif()
    elseif(DEP_CORE OR DEGU_REQUIRE_ALL OR DEFINED DEGU_LINKED)
      list(APPEND degu_missing ${name})
      list(APPEND degu_missing_packages ${DEP_DEBIAN})
      if(DEP_MODULE AND NOT PkgConfig_FOUND)
        list(APPEND degu_missing_packages pkg-config)
      endif()
    endif()
  endif()
endmacro()

find_package(Threads REQUIRED)
degu_dependency(fmt CORE LICENCE MIT DEBIAN libfmt-dev TARGET fmt::fmt VERSION fmt_VERSION FIND fmt)
degu_dependency(spdlog CORE LICENCE MIT DEBIAN libspdlog-dev TARGET spdlog::spdlog VERSION spdlog_VERSION FIND spdlog)
degu_dependency(yaml-cpp LICENCE MIT DEBIAN libyaml-cpp-dev TARGET yaml-cpp VERSION yaml-cpp_VERSION FIND yaml-cpp)
degu_dependency(nlohmann-json LICENCE MIT DEBIAN nlohmann-json3-dev TARGET nlohmann_json::nlohmann_json
                VERSION nlohmann_json_VERSION FIND nlohmann_json)
degu_dependency(CLI11 LICENCE BSD-3-Clause DEBIAN libcli11-dev TARGET CLI11::CLI11 VERSION CLI11_VERSION FIND CLI11)
degu_dependency(zlib LICENCE Zlib DEBIAN zlib1g-dev TARGET ZLIB::ZLIB VERSION ZLIB_VERSION_STRING FIND ZLIB)
degu_dependency(libdeflate LICENCE MIT DEBIAN libdeflate-dev TARGET PkgConfig::LIBDEFLATE VERSION LIBDEFLATE_VERSION
                MODULE libdeflate)
degu_dependency(OpenSSL LICENCE Apache-2.0 DEBIAN libssl-dev TARGET OpenSSL::Crypto VERSION OPENSSL_VERSION
                FIND OpenSSL COMPONENTS Crypto)  # SHA-256
degu_dependency(HDF5 LICENCE BSD-3-Clause DEBIAN libhdf5-dev TARGET hdf5::hdf5 VERSION HDF5_VERSION FIND HDF5 COMPONENTS C)
# The version is that of the standard; `degu info` asks the library for its own.
degu_dependency(MPI LICENCE BSD-3-Clause DEBIAN libopenmpi-dev TARGET MPI::MPI_C VERSION MPI_C_VERSION FIND MPI COMPONENTS C)
degu_dependency(SentencePiece LICENCE Apache-2.0 DEBIAN libsentencepiece-dev TARGET PkgConfig::SENTENCEPIECE
                VERSION SENTENCEPIECE_VERSION MODULE sentencepiece)
degu_dependency(LAPACKE LICENCE BSD-3-Clause DEBIAN liblapacke-dev TARGET PkgConfig::LAPACKE VERSION LAPACKE_VERSION
                MODULE lapacke)
degu_dependency(cpp-httplib LICENCE MIT DEBIAN libcpp-httplib-dev TARGET PkgConfig::HTTPLIB VERSION HTTPLIB_VERSION
                MODULE cpp-httplib)
degu_dependency(prometheus-cpp LICENCE MIT DEBIAN prometheus-cpp-dev TARGET PkgConfig::PROMETHEUS
                VERSION PROMETHEUS_VERSION MODULE prometheus-cpp-core)
degu_dependency(Catch2 TESTS LICENCE BSL-1.0 DEBIAN catch2 TARGET Catch2::Catch2 VERSION Catch2_VERSION FIND Catch2 2)
degu_dependency(Ceres TESTS LICENCE BSD-3-Clause DEBIAN libceres-dev TARGET Ceres::ceres VERSION Ceres_VERSION FIND Ceres)
degu_dependency(Python TESTS LICENCE PSF DEBIAN python3 TARGET Python3::Interpreter VERSION Python3_VERSION
                FIND Python3 COMPONENTS Interpreter)

if(degu_missing)
  string(JOIN ", " degu_missing ${degu_missing})
  list(REMOVE_DUPLICATES degu_missing_packages)
  string(JOIN " " degu_missing_packages ${degu_missing_packages})
  set(degu_advice "")
  if(DEGU_REQUIRE_ALL)
    set(degu_advice "; -DDEGU_REQUIRE_ALL=OFF builds what can be built without")
  endif()
  message(FATAL_ERROR "degu did not find: ${degu_missing}. Install the Debian packages ${degu_missing_packages} "
                      "(scripts/setup.sh does)${degu_advice}")
endif()
