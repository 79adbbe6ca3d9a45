#pragma once

#include <span>
#include <string_view>

#include "base/error.h"

namespace waft::migration {

enum class Role { kSource, kDestination };

enum class State {
  kOffered,    // begun; the workload runs at the source
  kFrozen,     // source: about to freeze, or frozen
  kPrepared,   // source: everything is sent; the destination decides from here on
  kInDoubt,    // source: frozen, cannot reach the destination, asking
  kRestoring,  // destination: restoring into a frozen cgroup
  kReady,      // destination: restored and frozen; all that can fail has happened
  kCommitted,  // the destination's copy is the one
  kAborted,    // the source's copy is the one
  kFinished,   // and nothing of the migration is left on this host
};

// Who may decide on a step: this side alone, or this side on the other's word.
enum class Decider { kSelf, kPeer };

struct Transition {
  Role role;
  State from;
  State to;
  Decider decider;
};

// The transition table: what is not in it does not happen.
std::span<const Transition> Transitions();

// The row for this step, or nullptr.
const Transition* FindTransition(Role role, State from, State to);

std::string_view ToString(Role role);    // "source"
std::string_view ToString(State state);  // "in-doubt"
base::Result<State> ParseState(std::string_view name);

// May this side still end the migration on its own?
bool MayAbortAlone(Role role, State state);

// Is the migration decided, as far as this side knows?
bool IsDecided(State state);

}  // namespace waft::migration
