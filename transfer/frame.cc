#include "transfer/frame.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <concepts>
#include <optional>

namespace waft::transfer {
namespace {

constexpr std::string_view kMagic = "WF";

template <std::unsigned_integral T>
void Put(std::string* out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out->push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * i))));
  }
}

template <size_t N>
void Put(std::string* out, const std::array<unsigned char, N>& bytes) {
  out->append(bytes.begin(), bytes.end());
}

// Takes fields off the front of a payload. Once one is missing, all that follow read as zero and
// Complete() is false.
class Fields {
 public:
  explicit Fields(std::string_view payload) : left_(payload) {}

  template <std::unsigned_integral T>
  T Take() {
    T value = 0;
    const std::string_view bytes = TakeBytes(sizeof(T));
    for (size_t i = 0; i < bytes.size(); ++i) {
      value = static_cast<T>(value | static_cast<T>(static_cast<unsigned char>(bytes[i])) << 8 * i);
    }
    return value;
  }

  template <size_t N>
  std::array<unsigned char, N> TakeArray() {
    std::array<unsigned char, N> out{};
    const std::string_view bytes = TakeBytes(N);
    std::ranges::copy(bytes, out.begin());
    return out;
  }

  // All `count` of them or none.
  std::string_view TakeBytes(size_t count) {
    if (short_ || left_.size() < count) {
      short_ = true;
      return {};
    }
    const std::string_view bytes = left_.substr(0, count);
    left_.remove_prefix(count);
    return bytes;
  }

  bool Complete() const { return !short_ && left_.empty(); }

 private:
  std::string_view left_;
  bool short_ = false;
};

std::unexpected<base::Error> FailProtocol(std::string message) {
  return std::unexpected(base::Error(base::ErrorCode::kRollBack, std::move(message), EPROTO));
}

std::unexpected<base::Error> FailLength(FrameType type, size_t payload_bytes) {
  return FailProtocol(
      fmt::format("{} frame with a payload of {} bytes", ToString(type), payload_bytes));
}

struct Bounds {
  size_t min;
  size_t max;
};

std::optional<Bounds> BoundsOf(FrameType type) {
  switch (type) {
    case FrameType::kHello:
      // Not version 1's exact bounds: a Hello of another version must get as far as its version.
      return Bounds{4, kMaxControlBytes};
    case FrameType::kWelcome:
      return Bounds{4, 4};
    case FrameType::kBegin:
    case FrameType::kFinish:
    case FrameType::kDone:
      return Bounds{12, 12};
    case FrameType::kFileBegin:
      return Bounds{10 + 1, 10 + kMaxNameBytes};
    case FrameType::kData:
      return Bounds{1, kMaxDataBytes};
    case FrameType::kFileEnd:
      return Bounds{sizeof(Checksum), sizeof(Checksum)};
    case FrameType::kError:
      return Bounds{10, 10 + kMaxMessageBytes};
  }
  return std::nullopt;
}

// What a peer says ends up in our log and on a terminal.
std::string Printable(std::string_view text) {
  std::string out(text);
  std::ranges::replace_if(out, [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  return out;
}

struct PayloadEncoder {
  std::string* out;

  FrameType operator()(const Hello& hello) const {
    Put(out, hello.version);
    Put(out, hello.token);
    Put(out, static_cast<uint8_t>(hello.migration_id.size()));
    out->append(hello.migration_id);
    return FrameType::kHello;
  }
  FrameType operator()(const Welcome& welcome) const {
    Put(out, welcome.version);
    return FrameType::kWelcome;
  }
  FrameType operator()(const Begin& begin) const {
    Put(out, begin.files);
    Put(out, begin.bytes);
    return FrameType::kBegin;
  }
  FrameType operator()(const FileBegin& file) const {
    Put(out, file.size_bytes);
    Put(out, static_cast<uint16_t>(file.name.size()));
    out->append(file.name);
    return FrameType::kFileBegin;
  }
  FrameType operator()(const Data& data) const {
    out->append(data.bytes);
    return FrameType::kData;
  }
  FrameType operator()(const FileEnd& end) const {
    Put(out, end.checksum);
    return FrameType::kFileEnd;
  }
  FrameType operator()(const Finish& finish) const {
    Put(out, finish.files);
    Put(out, finish.bytes);
    return FrameType::kFinish;
  }
  FrameType operator()(const Done& done) const {
    Put(out, done.files);
    Put(out, done.bytes);
    return FrameType::kDone;
  }
  FrameType operator()(const ErrorFrame& error) const {
    const std::string_view message = std::string_view(error.message).substr(0, kMaxMessageBytes);
    Put(out, error.version);
    Put(out, static_cast<uint32_t>(error.code));
    Put(out, static_cast<uint16_t>(message.size()));
    out->append(message);
    return FrameType::kError;
  }
};

base::Result<Frame> DecodeHello(std::string_view payload) {
  Fields fields(payload);
  Hello hello;
  hello.version = fields.Take<uint32_t>();
  if (hello.version != kProtocolVersion) return hello;
  hello.token = fields.TakeArray<kTokenBytes>();
  hello.migration_id = fields.TakeBytes(fields.Take<uint8_t>());
  if (!fields.Complete()) return FailLength(FrameType::kHello, payload.size());
  WAFT_TRY(CheckMigrationId(hello.migration_id));
  return hello;
}

template <typename T>
base::Result<Frame> DecodeTotals(FrameType type, std::string_view payload) {
  Fields fields(payload);
  T totals;
  totals.files = fields.Take<uint32_t>();
  totals.bytes = fields.Take<uint64_t>();
  if (!fields.Complete()) return FailLength(type, payload.size());
  if (totals.files > kMaxFiles || totals.bytes > kMaxBytes) {
    return FailProtocol(fmt::format("{} frame with {} files of {} bytes: at most {} files of {}",
                                    ToString(type), totals.files, totals.bytes, kMaxFiles,
                                    kMaxBytes));
  }
  return totals;
}

base::Result<Frame> DecodeFileBegin(std::string_view payload) {
  Fields fields(payload);
  FileBegin file;
  file.size_bytes = fields.Take<uint64_t>();
  const std::string_view name = fields.TakeBytes(fields.Take<uint16_t>());
  if (!fields.Complete()) return FailLength(FrameType::kFileBegin, payload.size());
  if (file.size_bytes > kMaxBytes) {
    return FailProtocol(fmt::format("a file of {} bytes: at most {}", file.size_bytes, kMaxBytes));
  }
  WAFT_TRY(CheckFileName(name));
  file.name = name;
  return file;
}

base::Result<Frame> DecodeError(std::string_view payload) {
  Fields fields(payload);
  ErrorFrame error;
  error.version = fields.Take<uint32_t>();
  error.code = static_cast<WireError>(fields.Take<uint32_t>());
  const std::string_view message = fields.TakeBytes(fields.Take<uint16_t>());
  if (!fields.Complete()) return FailLength(FrameType::kError, payload.size());
  error.message = Printable(message);
  return error;
}

}  // namespace

std::string_view ToString(FrameType type) {
  switch (type) {
    case FrameType::kHello:
      return "Hello";
    case FrameType::kWelcome:
      return "Welcome";
    case FrameType::kBegin:
      return "Begin";
    case FrameType::kFileBegin:
      return "FileBegin";
    case FrameType::kData:
      return "Data";
    case FrameType::kFileEnd:
      return "FileEnd";
    case FrameType::kFinish:
      return "Finish";
    case FrameType::kDone:
      return "Done";
    case FrameType::kError:
      return "Error";
  }
  return "unknown";
}

std::array<char, kHeaderBytes> EncodeHeader(FrameHeader header) {
  std::string bytes(kMagic);
  Put(&bytes, static_cast<uint16_t>(header.type));
  Put(&bytes, header.payload_bytes);
  std::array<char, kHeaderBytes> out;
  std::ranges::copy(bytes, out.begin());
  return out;
}

std::string Encode(const Frame& frame) {
  std::string out(kHeaderBytes, '\0');
  const FrameType type = std::visit(PayloadEncoder{&out}, frame);
  std::ranges::copy(EncodeHeader({type, static_cast<uint32_t>(out.size() - kHeaderBytes)}),
                    out.begin());
  return out;
}

base::Result<FrameHeader> DecodeHeader(std::string_view bytes) {
  Fields fields(bytes);
  const std::string_view magic = fields.TakeBytes(kMagic.size());
  const auto type = static_cast<FrameType>(fields.Take<uint16_t>());
  const auto payload_bytes = fields.Take<uint32_t>();
  if (!fields.Complete()) return FailProtocol(fmt::format("a header of {} bytes", bytes.size()));
  if (magic != kMagic) return FailProtocol("no frame begins here: this is not waft's protocol");
  const std::optional<Bounds> bounds = BoundsOf(type);
  if (!bounds) {
    return FailProtocol(fmt::format("unknown frame type {}", static_cast<uint16_t>(type)));
  }
  if (payload_bytes < bounds->min || payload_bytes > bounds->max) {
    return FailLength(type, payload_bytes);
  }
  return FrameHeader{type, payload_bytes};
}

base::Result<Frame> DecodePayload(FrameType type, std::string_view payload) {
  const std::optional<Bounds> bounds = BoundsOf(type);
  if (!bounds || payload.size() < bounds->min || payload.size() > bounds->max) {
    return FailLength(type, payload.size());
  }
  Fields fields(payload);
  switch (type) {
    case FrameType::kHello:
      return DecodeHello(payload);
    case FrameType::kWelcome:
      return Welcome{fields.Take<uint32_t>()};
    case FrameType::kBegin:
      return DecodeTotals<Begin>(type, payload);
    case FrameType::kFileBegin:
      return DecodeFileBegin(payload);
    case FrameType::kData:
      return Data{payload};
    case FrameType::kFileEnd:
      return FileEnd{fields.TakeArray<sizeof(Checksum)>()};
    case FrameType::kFinish:
      return DecodeTotals<Finish>(type, payload);
    case FrameType::kDone:
      return DecodeTotals<Done>(type, payload);
    case FrameType::kError:
      return DecodeError(payload);
  }
  return FailLength(type, payload.size());
}

base::Status CheckFileName(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) {
    return FailProtocol(
        fmt::format("a file name of {} bytes: 1 to {} are allowed", name.size(), kMaxNameBytes));
  }
  const bool graphic =
      std::ranges::all_of(name, [](char c) { return c > 0x20 && c < 0x7f && c != '/'; });
  if (!graphic || name.front() == '.') {
    return FailProtocol(
        fmt::format("'{}' may not name a file of an image set: only graphic ASCII "
                    "characters, no '/', no '.' in front",
                    Printable(name)));
  }
  return {};
}

base::Status CheckMigrationId(std::string_view id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (id.empty() || id.size() > kMaxIdBytes || !std::ranges::all_of(id, allowed)) {
    return FailProtocol(fmt::format(
        "'{}' is no migration id: 1 to {} of letters, digits, '.', '_' and '-' are allowed",
        Printable(id.substr(0, kMaxIdBytes)), kMaxIdBytes));
  }
  return {};
}

}  // namespace waft::transfer
