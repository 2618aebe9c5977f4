# What the control service needs: gRPC with reflection, protobuf, and the compiler plug-in. The target RegattaGrpc::RegattaGrpc.
find_package(Protobuf QUIET)  # before gRPC; defines protobuf_generate
if(Protobuf_FOUND)
  find_package(gRPC CONFIG QUIET)
endif()
if(TARGET gRPC::grpc++ AND TARGET gRPC::grpc++_reflection AND TARGET gRPC::grpc_cpp_plugin)
  set(RegattaGrpc_COMPLETE ON)
endif()
set(RegattaGrpc_VERSION "${gRPC_VERSION}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RegattaGrpc REQUIRED_VARS RegattaGrpc_COMPLETE VERSION_VAR RegattaGrpc_VERSION)

if(RegattaGrpc_FOUND AND NOT TARGET RegattaGrpc::RegattaGrpc)
  add_library(RegattaGrpc::RegattaGrpc INTERFACE IMPORTED)
  target_link_libraries(RegattaGrpc::RegattaGrpc INTERFACE gRPC::grpc++ gRPC::grpc++_reflection protobuf::libprotobuf)
endif()
