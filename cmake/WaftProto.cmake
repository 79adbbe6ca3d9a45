# waft_proto(OUT_VAR DIRECTORY ROOT [GRPC] a.proto ...): generates the C++ of protos in ROOT/DIRECTORY
# into gen/DIRECTORY of the build tree and appends the sources to OUT_VAR.
find_program(GRPC_PLUGIN grpc_cpp_plugin REQUIRED)

function(waft_proto out_var directory root)
  cmake_parse_arguments(ARG "GRPC" "" "" ${ARGN})
  set(gen ${CMAKE_BINARY_DIR}/gen)
  file(MAKE_DIRECTORY ${gen})
  foreach(proto ${ARG_UNPARSED_ARGUMENTS})
    get_filename_component(stem ${proto} NAME_WE)
    set(outputs ${gen}/${directory}/${stem}.pb.cc ${gen}/${directory}/${stem}.pb.h)
    set(arguments --cpp_out=${gen})
    if(ARG_GRPC)
      list(APPEND outputs ${gen}/${directory}/${stem}.grpc.pb.cc ${gen}/${directory}/${stem}.grpc.pb.h)
      list(APPEND arguments --grpc_out=${gen} --plugin=protoc-gen-grpc=${GRPC_PLUGIN})
    endif()
    add_custom_command(
      OUTPUT ${outputs}
      COMMAND ${Protobuf_PROTOC_EXECUTABLE} -I${root} ${arguments} ${root}/${directory}/${proto}
      DEPENDS ${root}/${directory}/${proto})
    list(APPEND sources ${outputs})
  endforeach()
  set_source_files_properties(${sources} PROPERTIES GENERATED ON)
  set(${out_var} ${${out_var}} ${sources} PARENT_SCOPE)
endfunction()
