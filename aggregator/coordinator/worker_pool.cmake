trib_library(trib_worker_pool
  SOURCES calibrate.cc capacity_book.cc pool_job.cc pool_job_load.cc pool_job_rounds.cc pool_job_tree.cc pool_scaler.cc round_planner.cc seat_wiring.cc tree_state.cc worker_fleet.cc worker_pool.cc worker_watchdog.cc
  DEPS trib_common trib_core trib_store trib_transport trib_ebpf)
