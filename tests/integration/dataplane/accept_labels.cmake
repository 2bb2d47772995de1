# Read by ctest after the tests were discovered: gtest_discover_tests cannot give a test two labels.
foreach(id T4 T4b T5b T11 T13 T19)
  if(accept_${id}_tests)
    set_tests_properties(${accept_${id}_tests} PROPERTIES LABELS "integration;accept_${id}")
  endif()
endforeach()
