# Installs libraries, public headers, the program, and a package that outside projects find with find_package(Regatta).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(regatta_include_dir ${CMAKE_INSTALL_INCLUDEDIR}/regatta)
set(regatta_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Regatta)

# Headers lie under include/regatta as they lie in the repository, so code says "sharding/plan.h" in both.
function(regatta_install_headers folder)
  list(TRANSFORM ARGN PREPEND ${PROJECT_SOURCE_DIR}/${folder}/ OUTPUT_VARIABLE files)
  install(FILES ${files} DESTINATION ${regatta_include_dir}/${folder})
  list(TRANSFORM ARGN PREPEND ${folder}/ OUTPUT_VARIABLE names)
  set_property(GLOBAL APPEND PROPERTY REGATTA_PUBLIC_HEADERS ${names})
endfunction()

regatta_install_headers(sharding bucket.h dtype.h geometry.h lines.h mesh.h placement.h plan.h reshard.h view.h)
regatta_install_headers(kernels exact_sum.h kernels.h)
regatta_install_headers(runtime error.h log.h version.h)
regatta_install_headers(runtime/checkpoint safetensors.h)
regatta_install_headers(runtime/device thread_pool.h)
regatta_install_headers(runtime/engine command.h engine.h param.h step_report.h)
regatta_install_headers(runtime/rules assignment.h rule.h schedule.h)
regatta_install_headers(runtime/transport factory.h transport.h)
regatta_install_headers(runtime/transport/local local_transport.h)
if(REGATTA_HAS_MPI)
  regatta_install_headers(runtime/transport/mpi mpi_communicator.h)
endif()

# The C interface lies at the root: #include <regatta.h>.
set(regatta_c_headers regatta.h)
if(REGATTA_HAS_MPI)
  list(APPEND regatta_c_headers regatta_mpi.h)
endif()
set_property(GLOBAL APPEND PROPERTY REGATTA_PUBLIC_HEADERS ${regatta_c_headers})
list(TRANSFORM regatta_c_headers PREPEND ${PROJECT_SOURCE_DIR}/runtime/c/)
install(FILES ${regatta_c_headers} DESTINATION ${regatta_include_dir})

set(regatta_libraries regatta_settings regatta_sharding regatta_kernels regatta_runtime)
if(TARGET regatta_torch)
  list(APPEND regatta_libraries regatta_torch)
  regatta_install_headers(runtime/torch adapter.h)
endif()
foreach(library IN LISTS regatta_libraries)
  string(REPLACE regatta_ "" short_name ${library})
  set_target_properties(${library} PROPERTIES EXPORT_NAME ${short_name})
endforeach()
install(TARGETS ${regatta_libraries} EXPORT RegattaTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
                                                           LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
# In an export of its own: who uses only the C interface needs none of the C++ libraries' dependencies.
set_target_properties(regatta_c PROPERTIES EXPORT_NAME c)
install(TARGETS regatta_c EXPORT RegattaCTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT RegattaCTargets NAMESPACE regatta:: DESTINATION ${regatta_package_dir})
install(TARGETS regatta RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT RegattaTargets NAMESPACE regatta:: DESTINATION ${regatta_package_dir})

# The package looks for exactly what this build used.
set(REGATTA_FIND_DEPENDENCIES "find_dependency(Threads)\nfind_dependency(spdlog)\nfind_dependency(nlohmann_json)\n"
                              "find_dependency(xxhash)\n")
set(modules ${PROJECT_SOURCE_DIR}/cmake/Findxxhash.cmake)
if(REGATTA_HAS_MPI)
  list(APPEND REGATTA_FIND_DEPENDENCIES "find_dependency(MPI COMPONENTS C)\n")
endif()
if(TARGET regatta_torch)
  list(APPEND REGATTA_FIND_DEPENDENCIES "find_dependency(RegattaTorch)\n")
  list(APPEND modules ${PROJECT_SOURCE_DIR}/cmake/FindRegattaTorch.cmake)
endif()
list(JOIN REGATTA_FIND_DEPENDENCIES "" REGATTA_FIND_DEPENDENCIES)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/RegattaConfig.cmake.in ${PROJECT_BINARY_DIR}/RegattaConfig.cmake
                              INSTALL_DESTINATION ${regatta_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/RegattaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/RegattaConfig.cmake ${PROJECT_BINARY_DIR}/RegattaConfigVersion.cmake ${modules}
        DESTINATION ${regatta_package_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/regatta)
