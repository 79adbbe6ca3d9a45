#include <cstdlib>

#include "cli/app.h"

int main(int argc, char** argv) {
  // waft turns gRPC's errors into messages of its own; the library's log lines would stand between.
  ::setenv("GRPC_VERBOSITY", "NONE", 0);
  return waft::cli::RunWaft(argc, argv);
}
