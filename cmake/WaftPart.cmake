# waft_part(NAME SOURCES ... [USES part ...] [LINKS target ...] [TESTS foo_test.cc ...])
#
# One folder, one static library waft_NAME with the alias waft::NAME. USES names other parts and is
# checked against Layers.cmake; LINKS names libraries from outside. Each of TESTS becomes a test program.
include(${CMAKE_CURRENT_LIST_DIR}/Layers.cmake)

add_library(waft_warnings INTERFACE)
target_compile_options(waft_warnings INTERFACE -Wall -Wextra -Werror -Wno-missing-field-initializers)

function(waft_part name)
  cmake_parse_arguments(ARG "" "" "SOURCES;USES;LINKS;TESTS" ${ARGN})
  foreach(used ${ARG_USES})
    if(NOT used IN_LIST WAFT_MAY_USE_${name})
      message(FATAL_ERROR "${name}/ may not use ${used}/: cmake/Layers.cmake allows "
                          "[${WAFT_MAY_USE_${name}}]")
    endif()
  endforeach()

  add_library(waft_${name} STATIC ${ARG_SOURCES})
  add_library(waft::${name} ALIAS waft_${name})
  target_include_directories(waft_${name} PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/gen)
  list(TRANSFORM ARG_USES PREPEND waft::)
  target_link_libraries(waft_${name} PUBLIC ${ARG_USES} ${ARG_LINKS} PRIVATE waft_warnings)

  foreach(test_source ${ARG_TESTS})
    get_filename_component(test ${test_source} NAME_WE)
    add_executable(${test} ${test_source})
    set_target_properties(${test} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/unit)
    target_link_libraries(${test} PRIVATE waft::${name} GTest::gmock_main waft_warnings)
    gtest_discover_tests(${test} TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60
                         PROPERTIES LABELS unit TIMEOUT 120)
  endforeach()
endfunction()

# waft_program(NAME PART SOURCES ...): an executable in bin/ that belongs to PART.
function(waft_program name part)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE waft::${part} waft_warnings)
endfunction()

# Links made with target_link_libraries behind waft_part()'s back are refused too.
function(waft_check_layers)
  get_property(parts DIRECTORY ${CMAKE_SOURCE_DIR} PROPERTY SUBDIRECTORIES)
  foreach(dir ${parts})
    get_filename_component(name ${dir} NAME)
    if(NOT TARGET waft_${name})
      continue()
    endif()
    get_target_property(links waft_${name} LINK_LIBRARIES)
    foreach(link ${links})
      if(link MATCHES "^waft(::|_)(.+)$")
        set(used ${CMAKE_MATCH_2})
        if(NOT used STREQUAL "warnings" AND NOT used IN_LIST WAFT_MAY_USE_${name})
          message(FATAL_ERROR "waft_${name} links ${link}, which cmake/Layers.cmake does not allow")
        endif()
      endif()
    endforeach()
  endforeach()
endfunction()
