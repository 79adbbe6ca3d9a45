#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace waft::migration {

// What a host's migrations have in common.
struct Settings {
  std::string host_name;                // as our certificate says
  std::filesystem::path journals;       // on a disk that survives a reboot
  std::filesystem::path run_directory;  // images, sockets, logs of running migrations
  std::filesystem::path programs;       // where waft-criu and its like are
  uint64_t image_room_bytes = 0;        // the largest image set taken or made

  // What one migration keeps while it runs.
  std::filesystem::path DirectoryOf(const std::string& migration_id) const {
    return run_directory / "migrations" / migration_id;
  }
};

}  // namespace waft::migration
