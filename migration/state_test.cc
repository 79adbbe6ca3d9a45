#include "migration/state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <compare>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

namespace waft::migration {
namespace {

using enum State;
using enum Role;
using enum Decider;
using testing::Contains;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr std::array kStates{kOffered, kFrozen,    kPrepared, kInDoubt, kRestoring,
                             kReady,   kCommitted, kAborted,  kFinished};

TEST(StateTest, NamesGoRoundTrip) {
  std::set<std::string_view> names;
  for (const State state : kStates) {
    names.insert(ToString(state));
    EXPECT_EQ(ParseState(ToString(state)).value(), state);
  }
  EXPECT_EQ(names.size(), kStates.size());
  EXPECT_EQ(ToString(kInDoubt), "in-doubt");
  EXPECT_EQ(ToString(kSource), "source");
  EXPECT_EQ(ToString(kDestination), "destination");
  for (const char* none : {"", "Offered", "offered ", "done", "kOffered"}) {
    ASSERT_FALSE(ParseState(none)) << none;
    EXPECT_EQ(ParseState(none).error().code(), base::ErrorCode::kDataLoss);
  }
}

TEST(StateTest, WhoMayAbortAlone) {
  const auto alone = [](Role role) {
    std::vector<State> states;
    for (const State state : kStates) {
      if (MayAbortAlone(role, state)) states.push_back(state);
    }
    return states;
  };
  EXPECT_THAT(alone(kSource), UnorderedElementsAre(kOffered, kFrozen));
  EXPECT_THAT(alone(kDestination), UnorderedElementsAre(kOffered, kRestoring, kReady));
}

TEST(StateTest, WhatIsDecided) {
  for (const State state : kStates) {
    EXPECT_EQ(IsDecided(state), state == kCommitted || state == kAborted || state == kFinished);
  }
}

TEST(StateTest, FindTransitionFindsEveryRowAndNothingElse) {
  std::set<std::tuple<Role, State, State>> steps;
  for (const Transition& row : Transitions()) {
    EXPECT_EQ(FindTransition(row.role, row.from, row.to), &row);
    EXPECT_TRUE(steps.emplace(row.role, row.from, row.to).second) << "twice in the table";
  }
  for (const Role role : {kSource, kDestination}) {
    for (const State from : kStates) {
      for (const State to : kStates) {
        EXPECT_EQ(FindTransition(role, from, to) != nullptr, steps.contains({role, from, to}));
      }
    }
  }
}

// A model of a migration: two sides that follow a transition table, journal each step before they
// act on it, crash and recover as Source::Recover() and Destination::Recover() do, over a network
// that loses messages and delivers them late and more than once. Its promises, in every state it
// can reach:
//
//   1. At no time do both copies run.
//   2. A decision never changes, and the two sides never know different ones.
//   3. Once faults stop, whatever happens next, it comes to an end, and at the end exactly one copy
//      runs and no side has anything left to do.
enum class Copy { kNone, kFrozen, kRunning };
enum class Decision { kNone, kCommit, kAbort };

struct Side {
  std::optional<State> state;  // of its journal; none: it has no journal
  Copy copy = Copy::kNone;
  Decision decision = Decision::kNone;  // as far as it knows
  bool up = true;
  bool recovering = false;  // it was restarted: it ends the migration and begins nothing
  std::strong_ordering operator<=>(const Side&) const = default;
};

struct World {
  Side source{.state = kOffered, .copy = Copy::kRunning};
  Side destination;
  // What is on the network. Messages stay, to be delivered again, until a fault takes them.
  bool prepare = true;
  bool handover = false;
  bool commit = false;
  bool abort = false;
  std::strong_ordering operator<=>(const World&) const = default;
  int RunningCopies() const {
    return (source.copy == Copy::kRunning ? 1 : 0) + (destination.copy == Copy::kRunning ? 1 : 0);
  }
};

class Model {
 public:
  explicit Model(std::vector<Transition> table) : table_(std::move(table)) { Explore(); }

  const std::set<std::string>& violations() const { return violations_; }
  size_t states() const { return seen_.size(); }
  size_t rows_used() const { return rows_used_.size(); }

 private:
  // Every world that can come next without a fault.
  std::vector<World> Steps(const World& world) {
    std::vector<World> next;
    for (const Transition& row : table_) {
      const Side& side = row.role == kSource ? world.source : world.destination;
      if (!side.up || side.state != row.from || !IsAllowed(world, side, row)) continue;
      World to = world;
      Enter(to, row.role, row.to);
      rows_used_.emplace(row.role, row.from, row.to);
      next.push_back(to);
    }
    const auto add = [&](bool possible, const std::function<void(World&)>& change) {
      if (!possible) return;
      World to = world;
      change(to);
      if (to != world) next.push_back(to);
    };
    const Side& source = world.source;
    const Side& destination = world.destination;
    // What a side does after a step has been journalled.
    add(source.up, [&](World& to) {
      if (source.state == kFrozen && !source.recovering) to.source.copy = Copy::kFrozen;
      if (source.state == kAborted) to.source.copy = Copy::kRunning;
      if (source.state == kCommitted) to.source.copy = Copy::kNone;
    });
    add(destination.up, [&](World& to) {
      if (destination.state == kRestoring && !destination.recovering) {
        to.destination.copy = Copy::kFrozen;
      }
      if (destination.state == kAborted) to.destination.copy = Copy::kNone;
      if (destination.state == kCommitted) to.destination.copy = Copy::kRunning;
    });
    // Destination::Prepare(): an id that has a journal is refused.
    add(world.prepare && destination.up && !destination.state,
        [&](World& to) { to.destination.state = kOffered; });
    // Destination::Outcome(): an id never heard of is aborted, for good.
    const bool asks = source.state == kInDoubt || (source.state == kPrepared && source.recovering);
    add(asks && source.up && destination.up, [&](World& to) {
      if (!destination.state) Enter(to, kDestination, kAborted);
      to.commit = to.commit || to.destination.decision == Decision::kCommit;
      to.abort = to.abort || to.destination.decision == Decision::kAbort;
    });
    for (Side World::* side : {&World::source, &World::destination}) {
      add(!(world.*side).up, [&](World& to) { (to.*side).up = true; });
    }
    return next;
  }

  static std::vector<World> Faults(const World& world) {
    std::vector<World> next;
    for (Side World::* side : {&World::source, &World::destination}) {
      World to = world;
      (to.*side).up = false;
      (to.*side).recovering = (to.*side).state.has_value();
      next.push_back(to);
    }
    for (bool World::* message :
         {&World::prepare, &World::handover, &World::commit, &World::abort}) {
      World to = world;
      to.*message = false;
      next.push_back(to);
    }
    return next;
  }

  // May the step be taken now? The table says who decides on it; the order of the code says the
  // rest.
  static bool IsAllowed(const World& world, const Side& side, const Transition& row) {
    const bool ends = row.to == kAborted || row.to == kCommitted || row.to == kFinished;
    if (side.recovering) {
      // Source::Recover() and Destination::Recover(): an undecided side aborts where it may.
      if (!ends || (row.to == kCommitted && row.decider == kSelf)) return false;
    }
    if (row.decider == kPeer) {
      if (row.to == kRestoring) return world.handover;
      if (row.to == kCommitted) return world.commit;
      if (row.to == kAborted) return world.abort;
    }
    if (row.to == kPrepared || row.to == kReady) return side.copy == Copy::kFrozen;
    if (row.to == kFinished) return side.copy == Settled(row.role, row.from);
    return true;
  }

  static Copy Settled(Role role, State state) {
    return (role == kSource) == (state == kAborted) ? Copy::kRunning : Copy::kNone;
  }

  void Enter(World& world, Role role, State state) {
    Side& side = role == kSource ? world.source : world.destination;
    side.state = state;
    if (state == kPrepared) world.handover = true;
    if (state != kCommitted && state != kAborted) return;
    const Decision decision = state == kCommitted ? Decision::kCommit : Decision::kAbort;
    if (side.decision != Decision::kNone && side.decision != decision) {
      violations_.insert("a decision changed");
    }
    side.decision = decision;
    if (role == kDestination) (state == kCommitted ? world.commit : world.abort) = true;
  }

  void CheckAlways(const World& world) {
    if (world.RunningCopies() == 2) violations_.insert("both copies run");
    if (world.source.decision != Decision::kNone && world.destination.decision != Decision::kNone &&
        world.source.decision != world.destination.decision) {
      violations_.insert("the sides know different decisions");
    }
  }

  // Promise 3 for `world` and all that follows it without a fault.
  void CheckEnd(const World& world) {
    const auto [at, is_new] = on_path_.try_emplace(world, true);
    if (!is_new) {
      if (at->second) violations_.insert("it may never end");
      return;
    }
    const std::vector<World> next = Steps(world);
    for (const World& to : next) CheckEnd(to);
    if (next.empty()) {
      if (world.RunningCopies() == 0) violations_.insert("no copy runs at the end");
      if (world.RunningCopies() == 2) violations_.insert("two copies run at the end");
      const std::optional<State> there = world.destination.state;
      if (world.source.state != kFinished || (there && there != kFinished)) {
        violations_.insert("it gets stuck");
      }
    }
    on_path_[world] = false;
  }

  void Explore() {
    std::vector<World> open{World{}};
    seen_.insert(open.back());
    while (!open.empty()) {
      const World world = open.back();
      open.pop_back();
      CheckAlways(world);
      CheckEnd(world);
      std::vector<World> next = Steps(world);
      const std::vector<World> faults = Faults(world);
      next.insert(next.end(), faults.begin(), faults.end());
      for (const World& to : next) {
        if (seen_.insert(to).second) open.push_back(to);
      }
    }
  }

  const std::vector<Transition> table_;
  std::set<World> seen_;
  std::map<World, bool> on_path_;
  std::set<std::tuple<Role, State, State>> rows_used_;
  std::set<std::string> violations_;
};

std::vector<Transition> Table() { return {Transitions().begin(), Transitions().end()}; }

// The table with one row changed or added, or left out.
std::vector<Transition> With(const Transition& changed) {
  std::vector<Transition> table = Table();
  std::erase_if(table, [&](const Transition& row) {
    return row.role == changed.role && row.from == changed.from && row.to == changed.to;
  });
  table.push_back(changed);
  return table;
}
std::vector<Transition> Without(Role role, State from, State to) {
  std::vector<Transition> table = With({role, from, to, kSelf});
  table.pop_back();
  return table;
}

TEST(ModelTest, TheTableKeepsItsPromises) {
  const Model model(Table());
  EXPECT_THAT(model.violations(), IsEmpty());
  EXPECT_GT(model.states(), 1000U) << "hardly anything was looked at";
  EXPECT_EQ(model.rows_used(), Transitions().size()) << "a row that the model never takes";
}

// That it would tell: tables with one mistake each.
TEST(ModelTest, ASourceThatAbortsAloneAfterPreparedIsCaught) {
  EXPECT_THAT(Model(With({kSource, kPrepared, kAborted, kSelf})).violations(),
              Contains("both copies run"));
  EXPECT_THAT(Model(With({kSource, kInDoubt, kAborted, kSelf})).violations(),
              Contains("both copies run"));
}

TEST(ModelTest, ASourceThatCommitsAloneIsCaught) {
  EXPECT_THAT(Model(With({kSource, kPrepared, kCommitted, kSelf})).violations(),
              Contains("no copy runs at the end"));
}

TEST(ModelTest, ADestinationThatAbortsAfterCommitIsCaught) {
  EXPECT_THAT(Model(With({kDestination, kCommitted, kAborted, kSelf})).violations(),
              Contains("a decision changed"));
}

TEST(ModelTest, ADestinationThatCommitsAfterAbortIsCaught) {
  EXPECT_THAT(Model(With({kDestination, kAborted, kCommitted, kSelf})).violations(),
              Contains("both copies run"));
}

TEST(ModelTest, ADestinationThatRestoresWithoutAHandoverIsCaught) {
  EXPECT_THAT(Model(With({kDestination, kOffered, kRestoring, kSelf})).violations(),
              Contains("both copies run"));
}

TEST(ModelTest, AMissingWayOutIsCaught) {
  EXPECT_THAT(Model(Without(kSource, kInDoubt, kAborted)).violations(), Contains("it gets stuck"));
  EXPECT_THAT(Model(Without(kDestination, kReady, kAborted)).violations(),
              Contains("it gets stuck"));
  EXPECT_THAT(Model(Without(kSource, kCommitted, kFinished)).violations(),
              Contains("it gets stuck"));
}

TEST(ModelTest, GoingRoundInCirclesIsCaught) {
  EXPECT_THAT(Model(With({kSource, kInDoubt, kPrepared, kSelf})).violations(),
              Contains("it may never end"));
}

}  // namespace
}  // namespace waft::migration
