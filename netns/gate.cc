#include "netns/gate.h"

#include <linux/if.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "netns/namespace.h"

namespace waft::netns {

struct Gate::State {
  struct Link {
    v1::NetworkLink identity;
    int inside_index;
    int host_index;
  };
  Namespace ns;
  Netlink host;
  std::vector<Link> links;
  bool cut;
};

Gate::Gate(std::unique_ptr<State> state) : state_(std::move(state)) {}
Gate::Gate(Gate&&) noexcept = default;
Gate& Gate::operator=(Gate&&) noexcept = default;
Gate::~Gate() = default;

base::Result<Gate> Gate::ForWorkload(const v1::NetworkIdentity& identity) {
  if (identity.path().empty()) return Gate(nullptr);
  WAFT_ASSIGN(Netlink host, Netlink::Open());
  WAFT_ASSIGN(Namespace ns, Namespace::Enter(identity.path()));
  WAFT_ASSIGN(const std::vector<Port> ports, FindPorts(host, ns));
  std::vector<State::Link> links;
  bool cut = !identity.links().empty();
  for (const v1::NetworkLink& link : identity.links()) {
    const auto port = std::ranges::find_if(
        ports, [&](const Port& candidate) { return candidate.inside.name == link.name(); });
    if (port == ports.end() || !port->host) {
      return base::Fail(base::ErrorCode::kRollBack,
                        identity.path() + " has no veth " + link.name() + " to this host");
    }
    links.push_back({link, port->inside.index, port->host->index});
    cut = cut && (port->host->flags & IFF_UP) == 0;
  }
  return Gate(
      std::make_unique<State>(State{std::move(ns), std::move(host), std::move(links), cut}));
}

base::Status Gate::Cut() {
  if (state_ == nullptr) return {};
  for (const State::Link& link : state_->links) {
    WAFT_TRY(SetLinkFlags(state_->host, link.host_index, 0, IFF_UP));
  }
  state_->cut = true;
  return {};
}

base::Status Gate::Restore() {
  if (state_ == nullptr) return {};
  state_->cut = false;
  for (const State::Link& link : state_->links) {
    WAFT_TRY(SetLinkFlags(state_->host, link.host_index, IFF_UP, IFF_UP));
    WAFT_TRY(SyncCarrier(state_->host, link.host_index));
    WAFT_TRY(SyncCarrier(state_->ns.route(), link.inside_index));
    WAFT_TRY(SolicitUnresolved(state_->ns, link.identity, link.inside_index));
  }
  return {};
}

bool Gate::IsCut() const { return state_ != nullptr && state_->cut; }

}  // namespace waft::netns
