#pragma once

#include <xxhash.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "transfer/frame.h"

namespace waft::transfer {

struct ReceiveSummary {
  uint32_t files = 0;
  uint64_t bytes = 0;
};

// The receiving half of the protocol without its network: takes frames from Begin to Finish in the
// order they must have, and makes the files. Owns a descriptor of the directory, the file being
// written, and, until Finish was right, all files it made: an image set that is not complete is
// removed with the writer. One thread at a time; blocks on the file system only.
//
// The errno of its errors tells the kind: EPROTO (format or order), EFBIG (the limit), ENOSPC or
// EDQUOT (no room), EBADMSG (checksum), ECONNABORTED (the peer said it gave up), or the system's
// own.
class ImageWriter {
 public:
  // `directory_path` is for messages. At most `limit_bytes` of content are written.
  ImageWriter(base::UniqueFd directory, std::filesystem::path directory_path, uint64_t limit_bytes)
      : directory_(std::move(directory)),
        path_(std::move(directory_path)),
        limit_bytes_(limit_bytes) {}
  ImageWriter(const ImageWriter&) = delete;
  ImageWriter& operator=(const ImageWriter&) = delete;
  ~ImageWriter() { Discard(); }

  // After an error only Discard() makes sense.
  base::Status Apply(const Frame& frame);

  bool begun() const { return state_ != State::kBeforeBegin; }
  bool finished() const { return state_ == State::kFinished; }
  // Of what was announced, so far.
  ReceiveSummary received() const { return received_; }
  ReceiveSummary announced() const { return announced_; }

  // Removes every file made, also after Finish.
  void Discard();
  // The files stay. Only once finished().
  void Commit() { created_.clear(); }

 private:
  enum class State { kBeforeBegin, kBetweenFiles, kInFile, kFinished };
  struct FreeState {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };

  base::Status OnBegin(const Begin& begin);
  base::Status OnFileBegin(const FileBegin& file);
  base::Status OnData(std::string_view bytes);
  base::Status OnFileEnd(const FileEnd& end);
  base::Status OnFinish(const Finish& finish);
  base::Status RequireState(State state, FrameType type) const;
  std::unexpected<base::Error> FailNoRoom(int error_number) const;

  base::UniqueFd directory_;
  std::filesystem::path path_;
  uint64_t limit_bytes_;
  State state_ = State::kBeforeBegin;
  ReceiveSummary announced_;
  ReceiveSummary received_;
  std::vector<std::string> created_;

  // The file being written.
  base::UniqueFd file_;
  std::string name_;
  uint64_t size_bytes_ = 0;
  uint64_t written_bytes_ = 0;
  std::unique_ptr<XXH3_state_t, FreeState> hash_;
};

}  // namespace waft::transfer
