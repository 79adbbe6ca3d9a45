#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"

namespace waft::agent {

// The three PEM files of one host, as `waft cert init` makes them.
struct Credentials {
  std::string ca;
  std::string certificate;
  std::string key;

  // Reads ca.crt, host.crt and host.key.
  static base::Result<Credentials> Load(const std::filesystem::path& directory);
};

}  // namespace waft::agent
