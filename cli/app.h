#pragma once

namespace waft::cli {

// The whole of `waft`: parses the command line, runs the command, returns what to exit with
// (exit_code.h). Uses standard output and error, and blocks SIGINT and SIGTERM during a migration:
// call it once, from main.
int RunWaft(int argc, char** argv);

}  // namespace waft::cli
