#pragma once

#include <chrono>
#include <filesystem>

#include "base/error.h"

namespace waft::migration {

// Removes a migration's directory: first unmounts what is mounted below (the image tmpfs, or
// cgroups that a killed CRIU left in its yard), then removes the files without crossing a mount.
base::Status RemoveRunDirectory(const std::filesystem::path& directory);

// After a waftd or a runc died, what it had started goes on for a moment; it is never killed (facts
// 9 and 10). Returns when no runc or CRIU is at work in `directory` any more, or an error after
// `timeout`.
base::Status AwaitOrphans(const std::filesystem::path& directory,
                          std::chrono::milliseconds timeout);

}  // namespace waft::migration
