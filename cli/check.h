#pragma once

#include <string>
#include <vector>

namespace waft::cli {

// Becomes `waftd --check`, which needs no daemon: the waftd beside our own executable (an
// installation or a build tree is used as a whole), else the one on PATH. Its exit code is ours.
// Returns only if there is none, with the message for the user.
std::string ExecCheck(bool json);

}  // namespace waft::cli
