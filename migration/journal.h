#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/journal.pb.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "migration/state.h"

namespace waft::migration {

// One side's record of one migration, a file DIRECTORY/ID.ROLE of records, each {u32 length, u32
// XXH32, protobuf v1::JournalRecord}, little endian. A record is on disk (fdatasync) when a call
// returns. A torn last record, as a crash or a full disk leaves it, counts as not written: reading
// passes over it, and the next record takes its place. Thread-safe.
class Journal {
 public:
  // A new journal in state kOffered. An id that has one already is an error.
  static base::Result<std::unique_ptr<Journal>> Create(const std::filesystem::path& directory,
                                                       const v1::JournalRecord::Begin& begin);
  static base::Result<std::unique_ptr<Journal>> Open(const std::filesystem::path& path);
  // Every journal that can be read; the others are logged and left alone.
  static std::vector<std::unique_ptr<Journal>> OpenAll(const std::filesystem::path& directory);

  static std::filesystem::path PathOf(const std::filesystem::path& directory, std::string_view id,
                                      Role role);

  // Appends a state. A step that is not in the transition table is refused and changes nothing.
  base::Status Advance(State to, std::string_view detail = "");
  // The same for kCommitted at the destination, with the times that Outcome answers.
  base::Status Advance(v1::JournalRecord record, State to);

  Role role() const { return role_; }
  const v1::JournalRecord::Begin& begin() const { return begin_; }
  State state() const;
  // The state's record, the last one in that state if there are several.
  std::optional<v1::JournalRecord> Find(State state) const;
  v1::JournalRecord First() const;  // when it began
  v1::JournalRecord Last() const;

 private:
  Journal() = default;
  base::Status Append(const v1::JournalRecord& record);

  base::UniqueFd fd_;
  int64_t good_bytes_ = 0;  // whole records
  bool torn_ = false;       // there may be more in the file
  Role role_ = Role::kSource;
  v1::JournalRecord::Begin begin_;
  mutable std::mutex mutex_;
  State state_ = State::kOffered;
  std::vector<v1::JournalRecord> records_;
};

}  // namespace waft::migration
