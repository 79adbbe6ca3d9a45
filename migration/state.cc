#include "migration/state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace waft::migration {
namespace {

using enum State;
using enum Role;
using enum Decider;

constexpr std::array kTransitions{
    Transition{kSource, kOffered, kFrozen, kSelf},
    Transition{kSource, kOffered, kAborted, kSelf},
    Transition{kSource, kFrozen, kPrepared, kSelf},
    Transition{kSource, kFrozen, kAborted, kSelf},
    Transition{kSource, kPrepared, kInDoubt, kSelf},
    Transition{kSource, kPrepared, kCommitted, kPeer},
    Transition{kSource, kPrepared, kAborted, kPeer},
    Transition{kSource, kInDoubt, kCommitted, kPeer},
    Transition{kSource, kInDoubt, kAborted, kPeer},
    Transition{kSource, kCommitted, kFinished, kSelf},
    Transition{kSource, kAborted, kFinished, kSelf},
    Transition{kDestination, kOffered, kRestoring, kPeer},  // on the source's Handover
    Transition{kDestination, kOffered, kAborted, kSelf},
    Transition{kDestination, kRestoring, kReady, kSelf},
    Transition{kDestination, kRestoring, kAborted, kSelf},
    Transition{kDestination, kReady, kCommitted, kSelf},
    Transition{kDestination, kReady, kAborted, kSelf},
    Transition{kDestination, kCommitted, kFinished, kSelf},
    Transition{kDestination, kAborted, kFinished, kSelf},
};

constexpr std::array kNames{
    std::pair{kOffered, "offered"},     std::pair{kFrozen, "frozen"},
    std::pair{kPrepared, "prepared"},   std::pair{kInDoubt, "in-doubt"},
    std::pair{kRestoring, "restoring"}, std::pair{kReady, "ready"},
    std::pair{kCommitted, "committed"}, std::pair{kAborted, "aborted"},
    std::pair{kFinished, "finished"},
};

}  // namespace

std::span<const Transition> Transitions() { return kTransitions; }

const Transition* FindTransition(Role role, State from, State to) {
  const auto at = std::find_if(
      kTransitions.begin(), kTransitions.end(),
      [&](const Transition& row) { return row.role == role && row.from == from && row.to == to; });
  return at == kTransitions.end() ? nullptr : &*at;
}

std::string_view ToString(Role role) { return role == kSource ? "source" : "destination"; }

std::string_view ToString(State state) {
  return std::find_if(kNames.begin(), kNames.end(),
                      [state](const auto& name) { return name.first == state; })
      ->second;
}

base::Result<State> ParseState(std::string_view name) {
  for (const auto& [state, text] : kNames) {
    if (text == name) return state;
  }
  return base::Fail(base::ErrorCode::kDataLoss, fmt::format("'{}' is no migration state", name));
}

bool MayAbortAlone(Role role, State state) {
  const Transition* row = FindTransition(role, state, kAborted);
  return row != nullptr && row->decider == kSelf;
}

bool IsDecided(State state) {
  return state == kCommitted || state == kAborted || state == kFinished;
}

}  // namespace waft::migration
