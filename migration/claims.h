#pragma once

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"

namespace waft::migration {

// Which workloads of this host are in a migration: one at a time each, whichever the role.
// Thread-safe; must outlive its claims.
//
// A destination keeps its claim until its last announcement, half a second after the workload runs:
// sent later, it would steal the address of one that has moved on. So Take() waits for such an end.
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

  // Blocks for up to two seconds while another migration has the workload.
  base::Result<Claim> Take(const std::string& workload) {
    std::unique_lock lock(mutex_);
    released_.wait_for(lock, kPatience, [&] { return !taken_.contains(workload); });
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
    released_.notify_all();
  }

  static constexpr std::chrono::seconds kPatience{2};
  std::mutex mutex_;
  std::condition_variable released_;
  std::set<std::string> taken_;
};

}  // namespace waft::migration
