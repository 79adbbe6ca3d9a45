#include "agent/credentials.h"

#include <fmt/format.h>

#include "base/file.h"

namespace waft::agent {

base::Result<Credentials> Credentials::Load(const std::filesystem::path& directory) {
  Credentials credentials;
  const auto read = [&directory](const char* name, std::string& into) -> base::Status {
    base::Result<std::string> text = base::ReadFile(directory / name);
    if (!text) {
      return std::unexpected(text.error().WithContext(fmt::format(
          "no certificates in {} (make them with `waft cert init`)", directory.string())));
    }
    into = std::move(*text);
    return {};
  };
  WAFT_TRY(read("ca.crt", credentials.ca));
  WAFT_TRY(read("host.crt", credentials.certificate));
  WAFT_TRY(read("host.key", credentials.key));
  return credentials;
}

}  // namespace waft::agent
