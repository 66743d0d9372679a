# nibble_module(NAME solve DEPS kernels SRCS rtn.cpp TESTS rtn_test.cpp [LIBS fmt::fmt] [SLOW_TESTS x_test.cpp])
# One static library a module, nibble_<name>. TESTS lie in tests/<name>/ and become one program, <name>_test,
# whose cases CTest runs under the label `fast`; SLOW_TESTS the same under `slow`. CONCURRENT: TESTS start threads, so they
# also carry the label `concurrency`, which the preset tsan runs.
function(nibble_module)
  cmake_parse_arguments(M "CONCURRENT" "NAME" "DEPS;SRCS;LIBS;TESTS;SLOW_TESTS;TEST_LIBS" ${ARGN})
  set(target nibble_${M_NAME})
  add_library(${target} STATIC ${M_SRCS})
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${target} PRIVATE nibble_options)
  foreach(dep IN LISTS M_DEPS)
    target_link_libraries(${target} PUBLIC nibble_${dep})
  endforeach()
  target_link_libraries(${target} PUBLIC ${M_LIBS})
  if(NIBBLE_BUILD_TESTS)
    set(labels fast)
    if(M_CONCURRENT)
      list(APPEND labels concurrency)
    endif()
    nibble_test(NAME ${M_NAME}_test LABEL ${labels} DIR ${M_NAME} SRCS ${M_TESTS}
                LIBS ${target} ${M_TEST_LIBS})
    nibble_test(NAME ${M_NAME}_slow_test LABEL slow DIR ${M_NAME} SRCS ${M_SLOW_TESTS}
                LIBS ${target} ${M_TEST_LIBS})
  endif()
endfunction()

# One GoogleTest program of several files below tests/<DIR>.
function(nibble_test)
  cmake_parse_arguments(T "" "NAME;DIR" "LABEL;SRCS;LIBS" ${ARGN})
  if(NOT T_SRCS)
    return()
  endif()
  list(TRANSFORM T_SRCS PREPEND ${PROJECT_SOURCE_DIR}/tests/${T_DIR}/)
  add_executable(${T_NAME} ${T_SRCS})
  target_include_directories(${T_NAME} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${T_NAME} PRIVATE
    NIBBLE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${T_NAME} PRIVATE nibble_options ${T_LIBS} GTest::gmock GTest::gtest
                        GTest::gtest_main)
  add_test(NAME ${T_NAME} COMMAND ${T_NAME} --gtest_brief=1)
  math(EXPR timeout "900 * ${NIBBLE_TIMEOUT_FACTOR}")
  set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABEL}" TIMEOUT ${timeout})
endfunction()
