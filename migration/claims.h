#pragma once

#include <fmt/format.h>

#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"

namespace waft::migration {

// Which workloads of this host are in a migration: one at a time each, whichever the role.
// Thread-safe; must outlive its claims.
class Claims {
 public:
  // Held for as long as the migration lasts.
  class Claim {
   public:
    Claim(Claims* claims, std::string id) : claims_(claims), id_(std::move(id)) {}
    Claim(Claim&& other) noexcept
        : claims_(std::exchange(other.claims_, nullptr)), id_(std::move(other.id_)) {}
    Claim& operator=(Claim&& other) noexcept {
      std::swap(claims_, other.claims_);
      std::swap(id_, other.id_);
      return *this;
    }
    ~Claim() {
      if (claims_ != nullptr) claims_->Release(id_);
    }

   private:
    Claims* claims_;
    std::string id_;
  };

  base::Result<Claim> Take(const std::string& workload) {
    const std::lock_guard lock(mutex_);
    if (!taken_.insert(workload).second) {
      return base::Fail(base::ErrorCode::kRetry,
                        fmt::format("'{}' is in another migration: see `waft status`", workload));
    }
    return Claim(this, workload);
  }

 private:
  void Release(const std::string& workload) {
    const std::lock_guard lock(mutex_);
    taken_.erase(workload);
  }

  std::mutex mutex_;
  std::set<std::string> taken_;
};

}  // namespace waft::migration
