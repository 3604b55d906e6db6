# `cmake --install`: the relocatable binary, headers, and a package that find_package(degu) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
