# Which part may use which: design section 2, row by row. waft_part() refuses a link that is not here,
# and tests/layers_test.py holds every #include against the same table.
set(WAFT_MAY_USE_base "")
set(WAFT_MAY_USE_api base)
set(WAFT_MAY_USE_transfer base api)
set(WAFT_MAY_USE_criu base api)
set(WAFT_MAY_USE_checkpoint base api criu)
set(WAFT_MAY_USE_restore base api criu)
set(WAFT_MAY_USE_netns base api)
set(WAFT_MAY_USE_engine base api)
set(WAFT_MAY_USE_migration base api transfer criu checkpoint restore netns engine)
set(WAFT_MAY_USE_agent base api transfer criu checkpoint restore netns engine migration)
set(WAFT_MAY_USE_cli base api)
