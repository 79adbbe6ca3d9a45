#pragma once

#include <string_view>

#include "base/error.h"

namespace waft::base {

// A named place where tests inject a fault. WAFT_FAULT, read once, is a comma-separated list of
// POINT=ACTION: `kill` ends this process with SIGKILL, `fail` returns an error, `stop` raises
// SIGSTOP. Without it a point costs one look at an empty table.
Status FaultPoint(std::string_view name);

}  // namespace waft::base
