#include "migration/journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <system_error>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"

namespace waft::migration {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
namespace {

static_assert(std::endian::native == std::endian::little, "the frame header is little endian");

struct FrameHeader {
  uint32_t length_bytes;
  uint32_t checksum;
};
constexpr uint32_t kMaxRecordBytes = 1 << 20;

std::string Frame(const v1::JournalRecord& record) {
  const std::string payload = record.SerializeAsString();
  const FrameHeader header{static_cast<uint32_t>(payload.size()),
                           XXH32(payload.data(), payload.size(), 0)};
  std::string frame(sizeof(header), '\0');
  std::memcpy(frame.data(), &header, sizeof(header));
  return frame + payload;
}

// Takes whole records off the front of `bytes`; what is left over is a torn tail.
std::vector<v1::JournalRecord> ParseRecords(std::string_view& bytes) {
  std::vector<v1::JournalRecord> records;
  for (;;) {
    FrameHeader header{};
    if (bytes.size() < sizeof(header)) return records;
    std::memcpy(&header, bytes.data(), sizeof(header));
    if (header.length_bytes > kMaxRecordBytes ||
        bytes.size() - sizeof(header) < header.length_bytes) {
      return records;
    }
    const std::string_view payload = bytes.substr(sizeof(header), header.length_bytes);
    v1::JournalRecord record;
    if (XXH32(payload.data(), payload.size(), 0) != header.checksum ||
        !record.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
      return records;
    }
    records.push_back(std::move(record));
    bytes.remove_prefix(sizeof(header) + header.length_bytes);
  }
}

// Records after what looks like a torn tail: then it is none, for nothing is written after one.
bool HoldsARecord(std::string_view bytes) {
  for (; !bytes.empty(); bytes.remove_prefix(1)) {
    std::string_view rest = bytes;
    if (!ParseRecords(rest).empty()) return true;
  }
  return false;
}

// CRIU's words name files, which may be any bytes; protobuf reads no text back that is not UTF-8.
std::string AsText(std::string_view bytes) {
  std::string text(bytes);
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c >= 0x80; }, '?');
  return text;
}

}  // namespace

fs::path Journal::PathOf(const fs::path& directory, std::string_view id, Role role) {
  return directory / fmt::format("{}.{}", id, ToString(role));
}

base::Result<std::unique_ptr<Journal>> Journal::Create(const fs::path& directory,
                                                       const v1::JournalRecord::Begin& begin) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) {
    return std::unexpected(base::Error::FromErrno("mkdir " + directory.string(), error.value()));
  }
  std::unique_ptr<Journal> journal(new Journal);
  journal->role_ = begin.role() == ToString(Role::kSource) ? Role::kSource : Role::kDestination;
  journal->begin_ = begin;
  const fs::path path = PathOf(directory, begin.migration_id(), journal->role_);
  WAFT_ASSIGN(journal->fd_, base::Open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
  v1::JournalRecord record;
  *record.mutable_begin() = begin;
  record.set_state(std::string(ToString(State::kOffered)));
  if (const base::Status written = journal->Append(record); !written) {
    ::unlink(path.c_str());  // or nobody could ever use or read this id
    return std::unexpected(written.error());
  }
  // The name must survive a crash as well as the bytes.
  WAFT_ASSIGN(const base::UniqueFd parent, base::Open(directory, O_RDONLY | O_DIRECTORY));
  if (::fsync(parent.get()) != 0) return base::FailErrno("fsync " + directory.string());
  return journal;
}

base::Result<std::unique_ptr<Journal>> Journal::Open(const fs::path& path) {
  WAFT_ASSIGN(const std::string bytes, base::ReadFile(path));
  std::string_view rest(bytes);
  std::unique_ptr<Journal> journal(new Journal);
  journal->records_ = ParseRecords(rest);
  if (journal->records_.empty() || !journal->records_.front().has_begin()) {
    return Fail(ErrorCode::kDataLoss, fmt::format("{} holds no whole record", path.string()));
  }
  if (HoldsARecord(rest)) {
    return Fail(ErrorCode::kDataLoss, fmt::format("{} is damaged after byte {}", path.string(),
                                                  bytes.size() - rest.size()));
  }
  journal->begin_ = journal->records_.front().begin();
  journal->role_ =
      journal->begin_.role() == ToString(Role::kSource) ? Role::kSource : Role::kDestination;
  WAFT_ASSIGN(journal->state_, ParseState(journal->records_.back().state()));
  WAFT_ASSIGN(journal->fd_, base::Open(path, O_RDWR));
  journal->good_bytes_ = static_cast<int64_t>(bytes.size() - rest.size());
  journal->torn_ = !rest.empty();
  return journal;
}

std::vector<std::unique_ptr<Journal>> Journal::OpenAll(const fs::path& directory) {
  std::vector<std::unique_ptr<Journal>> journals;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    base::Result<std::unique_ptr<Journal>> journal = Open(entry.path());
    if (journal) {
      journals.push_back(std::move(*journal));
    } else {
      base::LogWarning("skipping a journal: {}", journal.error().message());
    }
  }
  return journals;
}

base::Status Journal::Append(const v1::JournalRecord& record) {
  v1::JournalRecord stamped = record;
  stamped.set_realtime_ns(base::RealtimeNs());
  if (torn_ && ::ftruncate(fd_.get(), good_bytes_) != 0)
    return base::FailErrno("truncate a journal");
  if (::lseek(fd_.get(), good_bytes_, SEEK_SET) != good_bytes_) return base::FailErrno("lseek");
  const std::string frame = Frame(stamped);
  torn_ = true;
  WAFT_TRY(base::WriteAll(fd_.get(), frame));
  if (::fdatasync(fd_.get()) != 0) return base::FailErrno("fdatasync a journal");
  torn_ = false;
  good_bytes_ += static_cast<int64_t>(frame.size());
  records_.push_back(std::move(stamped));
  return {};
}

base::Status Journal::Advance(State to, std::string_view detail) {
  v1::JournalRecord record;
  record.set_detail(AsText(detail));
  return Advance(std::move(record), to);
}

base::Status Journal::Advance(v1::JournalRecord record, State to) {
  const std::lock_guard lock(mutex_);
  if (FindTransition(role_, state_, to) == nullptr) {
    return Fail(ErrorCode::kFatal, fmt::format("the {} cannot go from {} to {}", ToString(role_),
                                               ToString(state_), ToString(to)));
  }
  record.set_state(std::string(ToString(to)));
  WAFT_TRY(Append(record));
  state_ = to;
  return {};
}

State Journal::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

std::optional<v1::JournalRecord> Journal::Find(State state) const {
  const std::lock_guard lock(mutex_);
  const auto at = std::find_if(records_.rbegin(), records_.rend(), [&](const auto& record) {
    return record.state() == ToString(state);
  });
  if (at == records_.rend()) return std::nullopt;
  return *at;
}

v1::JournalRecord Journal::First() const {
  const std::lock_guard lock(mutex_);
  return records_.front();
}

v1::JournalRecord Journal::Last() const {
  const std::lock_guard lock(mutex_);
  return records_.back();
}

}  // namespace waft::migration
