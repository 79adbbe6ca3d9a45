#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"

namespace waft::criu {

// The CRIU program that waft uses: $WAFT_CRIU, else the one scripts/setup installed, else `criu` on
// PATH. It is not checked here; Version() does.
std::filesystem::path CriuPath();

// "4.2.1", from `criu --version`.
base::Result<std::string> Version();

// At least 4.2: 4.1 cannot dump TCP sockets on Linux >= 6.16 (SO_PASSCRED), 3.17 does not start
// there.
bool VersionIsEnough(const std::string& version);

// `criu check`: an error with CRIU's own words where this kernel lacks what CRIU needs.
base::Status Check();

// The image in which `criu cpuinfo dump` describes this host's CPU (cpuinfo.img).
base::Result<std::string> CpuinfoImage();

// `criu cpuinfo check` of another host's image: an error if a task dumped there cannot run here.
base::Status CheckCpuinfo(const std::string& image);

// The last error lines of a CRIU log, for messages; empty if there are none.
std::string LogErrors(const std::filesystem::path& log);

}  // namespace waft::criu
