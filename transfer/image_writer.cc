#include "transfer/image_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>
#include <variant>

#include "base/log.h"

namespace waft::transfer {
namespace {

using base::ErrorCode;
using base::Status;

std::unexpected<base::Error> FailWith(int error_number, std::string message,
                                      ErrorCode code = ErrorCode::kRollBack) {
  return std::unexpected(base::Error(code, std::move(message), error_number));
}

// Nothing if the file system does not tell, as a tmpfs without a size.
std::optional<uint64_t> FreeBytes(int directory) {
  struct statvfs info{};
  if (::fstatvfs(directory, &info) != 0 || info.f_blocks == 0) return std::nullopt;
  return static_cast<uint64_t>(info.f_bfree) * info.f_frsize;
}

}  // namespace

Status ImageWriter::Apply(const Frame& frame) {
  if (const auto* data = std::get_if<Data>(&frame)) return OnData(data->bytes);
  if (const auto* begin = std::get_if<Begin>(&frame)) return OnBegin(*begin);
  if (const auto* file = std::get_if<FileBegin>(&frame)) return OnFileBegin(*file);
  if (const auto* end = std::get_if<FileEnd>(&frame)) return OnFileEnd(*end);
  if (const auto* finish = std::get_if<Finish>(&frame)) return OnFinish(*finish);
  if (const auto* error = std::get_if<ErrorFrame>(&frame)) {
    return FailWith(ECONNABORTED, fmt::format("the source gave up: {}", error->message));
  }
  return FailWith(EPROTO, "a frame that only the destination sends");
}

Status ImageWriter::RequireState(State state, FrameType type) const {
  if (state_ == state) return {};
  return FailWith(EPROTO, fmt::format("{} frame out of order", ToString(type)));
}

std::unexpected<base::Error> ImageWriter::FailNoRoom(int error_number) const {
  const std::optional<uint64_t> free_bytes = FreeBytes(directory_.get());
  return FailWith(
      error_number,
      fmt::format("no room at the destination: {} bytes are free in {}, and {} bytes of "
                  "the image set's {} are still to come",
                  free_bytes ? fmt::to_string(*free_bytes) : "no", path_.string(),
                  announced_.bytes - received_.bytes, announced_.bytes));
}

Status ImageWriter::OnBegin(const Begin& begin) {
  WAFT_TRY(RequireState(State::kBeforeBegin, FrameType::kBegin));
  if (begin.bytes > limit_bytes_) {
    return FailWith(EFBIG, fmt::format("the image set has {} bytes, and the destination agreed to "
                                       "take {} at most",
                                       begin.bytes, limit_bytes_));
  }
  announced_ = {begin.files, begin.bytes};
  state_ = State::kBetweenFiles;
  // Known now, it need not be found out after the last free page was filled.
  if (const auto free_bytes = FreeBytes(directory_.get());
      free_bytes && *free_bytes < begin.bytes) {
    return FailNoRoom(ENOSPC);
  }
  return {};
}

Status ImageWriter::OnFileBegin(const FileBegin& file) {
  WAFT_TRY(RequireState(State::kBetweenFiles, FrameType::kFileBegin));
  WAFT_TRY(CheckFileName(file.name));
  if (received_.files == announced_.files || file.size_bytes > announced_.bytes - received_.bytes) {
    return FailWith(
        EPROTO, fmt::format("{} ({} bytes) goes past the announced {} files of {} bytes", file.name,
                            file.size_bytes, announced_.files, announced_.bytes));
  }
  if (!hash_) hash_.reset(XXH3_createState());
  if (!hash_) return FailWith(ENOMEM, "XXH3_createState");
  XXH3_128bits_reset(hash_.get());
  file_.reset(::openat(directory_.get(), file.name.c_str(),
                       O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file_) {
    const int error_number = errno;
    if (error_number == EEXIST) return FailWith(EPROTO, fmt::format("{} exists", file.name));
    if (error_number == ENOSPC || error_number == EDQUOT) return FailNoRoom(error_number);
    return std::unexpected(base::Error::FromErrno(
        fmt::format("create {} at the destination", (path_ / file.name).string()), error_number));
  }
  created_.push_back(file.name);
  name_ = file.name;
  size_bytes_ = file.size_bytes;
  written_bytes_ = 0;
  state_ = State::kInFile;
  return {};
}

Status ImageWriter::OnData(std::string_view bytes) {
  WAFT_TRY(RequireState(State::kInFile, FrameType::kData));
  if (bytes.size() > size_bytes_ - written_bytes_) {
    return FailWith(EPROTO, fmt::format("more data than the {} bytes of {}", size_bytes_, name_));
  }
  XXH3_128bits_update(hash_.get(), bytes.data(), bytes.size());
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(file_.get(), bytes.data(), bytes.size());
    if (wrote < 0) {
      const int error_number = errno;
      if (error_number == EINTR) continue;
      if (error_number == ENOSPC || error_number == EDQUOT) return FailNoRoom(error_number);
      return std::unexpected(base::Error::FromErrno(
          fmt::format("write {} at the destination", (path_ / name_).string()), error_number));
    }
    written_bytes_ += static_cast<uint64_t>(wrote);
    received_.bytes += static_cast<uint64_t>(wrote);
    bytes.remove_prefix(static_cast<size_t>(wrote));
  }
  return {};
}

Status ImageWriter::OnFileEnd(const FileEnd& end) {
  WAFT_TRY(RequireState(State::kInFile, FrameType::kFileEnd));
  if (written_bytes_ != size_bytes_) {
    return FailWith(EPROTO, fmt::format("{} ended after {} of its {} bytes", name_, written_bytes_,
                                        size_bytes_));
  }
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits_digest(hash_.get()));
  static_assert(sizeof(checksum.digest) == sizeof(Checksum));
  if (!std::equal(end.checksum.begin(), end.checksum.end(), std::begin(checksum.digest))) {
    return FailWith(EBADMSG,
                    fmt::format("{} has another checksum at the destination than the source gave: "
                                "it was damaged on the way or changed while it was read",
                                name_),
                    ErrorCode::kDataLoss);
  }
  file_.reset();
  ++received_.files;
  state_ = State::kBetweenFiles;
  return {};
}

Status ImageWriter::OnFinish(const Finish& finish) {
  WAFT_TRY(RequireState(State::kBetweenFiles, FrameType::kFinish));
  const bool complete = received_.files == announced_.files && received_.bytes == announced_.bytes;
  if (!complete || finish.files != announced_.files || finish.bytes != announced_.bytes) {
    return FailWith(EPROTO, fmt::format("announced {} files of {} bytes, finished with {} of {}, "
                                        "received {} of {}",
                                        announced_.files, announced_.bytes, finish.files,
                                        finish.bytes, received_.files, received_.bytes));
  }
  state_ = State::kFinished;
  return {};
}

void ImageWriter::Discard() {
  file_.reset();
  for (const std::string& name : std::exchange(created_, {})) {
    if (::unlinkat(directory_.get(), name.c_str(), 0) != 0 && errno != ENOENT) {
      base::LogIfError(base::FailErrno("unlink"), (path_ / name).string());
    }
  }
}

}  // namespace waft::transfer
