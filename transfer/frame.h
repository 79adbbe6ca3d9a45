#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "base/error.h"

// The frames of docs/protocol.md as values, and their bytes. Nothing here does I/O or keeps state,
// so any thread may call it. Decoding is made for bytes from strangers: it reads nothing past what
// it is given, allocates nothing that a bound below does not cover, and fails with errno EPROTO.
namespace waft::transfer {

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr size_t kHeaderBytes = 8;
inline constexpr size_t kTokenBytes = 32;
inline constexpr size_t kMaxIdBytes = 64;
inline constexpr size_t kMaxNameBytes = 255;  // NAME_MAX
inline constexpr size_t kMaxDataBytes = 1 << 20;
inline constexpr size_t kMaxMessageBytes = 1024;
// The longest payload of any frame but Data, and of a Hello of any version there will ever be.
inline constexpr size_t kMaxControlBytes = 10 + kMaxMessageBytes;
inline constexpr uint32_t kMaxFiles = 65536;
inline constexpr uint64_t kMaxBytes = INT64_MAX;  // off_t

using Token = std::array<unsigned char, kTokenBytes>;
using Checksum = std::array<unsigned char, 16>;  // XXH3-128, canonical

enum class FrameType : uint16_t {
  kHello = 1,
  kWelcome = 2,
  kBegin = 3,
  kFileBegin = 4,
  kData = 5,
  kFileEnd = 6,
  kFinish = 7,
  kDone = 8,
  kError = 9,
};

// Why a side gave up, as the other side can act on it.
enum class WireError : uint32_t {
  kInternal = 1,   // trouble of its own: the message says which
  kVersion = 2,    // speaks another version
  kRefused = 3,    // no such migration, or another token
  kProtocol = 4,   // a frame that the format or the order of frames does not allow
  kLimit = 5,      // more bytes than the destination agreed to take
  kNoRoom = 6,     // the destination's file system is full
  kChecksum = 7,   // a file did not arrive as it was sent
  kCancelled = 8,  // somebody there ended it
};

struct Hello {
  uint32_t version = kProtocolVersion;
  Token token{};  // this and what follows are set only if `version` is ours
  std::string migration_id;
};
struct Welcome {
  uint32_t version = kProtocolVersion;
};
struct Begin {
  uint32_t files = 0;
  uint64_t bytes = 0;
};
struct FileBegin {
  uint64_t size_bytes = 0;
  std::string name;
};
struct Data {
  std::string_view bytes;  // points into what was decoded
};
struct FileEnd {
  Checksum checksum{};
};
struct Finish {
  uint32_t files = 0;
  uint64_t bytes = 0;
};
struct Done {
  uint32_t files = 0;
  uint64_t bytes = 0;
};
struct ErrorFrame {
  uint32_t version = kProtocolVersion;
  WireError code = WireError::kInternal;
  std::string message;  // decoded: printable ASCII only
};
using Frame =
    std::variant<Hello, Welcome, Begin, FileBegin, Data, FileEnd, Finish, Done, ErrorFrame>;

struct FrameHeader {
  FrameType type = FrameType::kError;
  uint32_t payload_bytes = 0;
};

// The name for messages: "Hello".
std::string_view ToString(FrameType type);

// Header and payload. The caller keeps the bounds; only ErrorFrame's message is cut to size.
std::string Encode(const Frame& frame);
std::array<char, kHeaderBytes> EncodeHeader(FrameHeader header);

// `bytes` is exactly kHeaderBytes long. The payload's length is within the bounds of its type.
base::Result<FrameHeader> DecodeHeader(std::string_view bytes);
base::Result<Frame> DecodePayload(FrameType type, std::string_view payload);

// What may name a file of an image set: 1 to 255 graphic ASCII characters, no '/', no '.' in front.
base::Status CheckFileName(std::string_view name);
// What may name a migration: 1 to 64 of letters, digits, '.', '_' and '-'.
base::Status CheckMigrationId(std::string_view id);

}  // namespace waft::transfer
