# Included from CMakeLists.txt: what a job reaches and costs without daemons or network.
if(TRIBUTARY_TORCH)
  trib_program(local_federation SOURCES ${CMAKE_CURRENT_LIST_DIR}/local_federation.cc DEPS trib_client_torch trib_client_data)
endif()
