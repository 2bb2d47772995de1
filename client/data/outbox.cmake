# Included from client/data/CMakeLists.txt.
trib_library(trib_client_outbox
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/client_state.cc ${CMAKE_CURRENT_LIST_DIR}/outbox.cc
  DEPS trib_client_core trib_common)
