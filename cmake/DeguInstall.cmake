# `cmake --install`: the binary, the headers, the rooms as libraries, and a package that find_package(degu)
# finds. Nothing installed holds an absolute path of the build, so the prefix may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(rooms GLOBAL PROPERTY DEGU_ROOMS)
add_library(degu_all INTERFACE)  # degu::degu, every room at once
target_link_libraries(degu_all INTERFACE ${rooms})
set_target_properties(degu_all PROPERTIES EXPORT_NAME degu)
set_target_properties(degu_settings PROPERTIES EXPORT_NAME settings)
if(TARGET degu_kernels)
  set_target_properties(degu_kernels PROPERTIES EXPORT_NAME kernels)
endif()
list(REMOVE_DUPLICATES rooms)

if(TARGET degu)
  install(TARGETS degu RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(TARGETS degu_settings degu_all ${rooms} EXPORT deguTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/degu
        FILES_MATCHING PATTERN "*.h" PATTERN "cli" EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/kernels DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/degu
        FILES_MATCHING PATTERN "*.h" PATTERN "cpu" EXCLUDE PATTERN "cuda" EXCLUDE PATTERN "tables" EXCLUDE
        PATTERN "dispatch.h" EXCLUDE)
if(EXISTS ${PROJECT_SOURCE_DIR}/configs)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs DESTINATION ${CMAKE_INSTALL_DATADIR}/degu)
endif()

get_property(DEGU_LINKED GLOBAL PROPERTY DEGU_LINKED)  # for deguConfig.cmake.in
list(REMOVE_DUPLICATES DEGU_LINKED)
set(degu_nccl OFF)
if(TARGET NCCL::nccl)
  set(degu_nccl ON)
endif()
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/degu)
install(EXPORT deguTargets NAMESPACE degu:: DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/deguConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/deguConfig.cmake.in ${PROJECT_BINARY_DIR}/deguConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/deguConfig.cmake ${PROJECT_BINARY_DIR}/deguConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/third_party/Dependencies.cmake ${PROJECT_SOURCE_DIR}/third_party/FindNCCL.cmake
        DESTINATION ${package_dir})
