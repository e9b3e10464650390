// The names of the control tree and their node ids. Internal to tree.cpp.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "control/file_view.h"
#include "control/query.h"
#include "control/query_nodes.h"
#include "control/tree.h"

namespace latchfs::control {

enum class Fixed : std::uint8_t {
  kReadme = 2,
  kList,
  kWaiters,
  kRelease,
  kReply,
  kStatus,
  kFilelock,
  kUnfilelock
};

struct FixedName {
  std::string_view name;
  Fixed what;
  mode_t mode;
};
constexpr std::array<FixedName, 8> kFixed{{{"README", Fixed::kReadme, 0444},
                                           {"list", Fixed::kList, 0444},
                                           {"waiters", Fixed::kWaiters, 0444},
                                           {"release", Fixed::kRelease, 0666},
                                           {"filelock", Fixed::kFilelock, 0666},
                                           {"unfilelock", Fixed::kUnfilelock, 0666},
                                           {"reply", Fixed::kReply, 0444},
                                           {"status", Fixed::kStatus, 0444}}};
constexpr std::string_view kFilesName = "files";
constexpr std::uint64_t kFilesNode = kControlBit | kMirrorBit | FileView::kRootNode;

constexpr std::uint64_t node_of(Fixed what) {
  return kControlBit | static_cast<std::uint64_t>(what);
}

inline const FixedName* find_fixed(std::uint64_t node) {
  const auto found = std::find_if(kFixed.begin(), kFixed.end(),
                                  [node](const FixedName& f) { return node_of(f.what) == node; });
  return found == kFixed.end() ? nullptr : &*found;
}

constexpr bool takes_requests(Fixed what) {
  return what == Fixed::kRelease || what == Fixed::kFilelock || what == Fixed::kUnfilelock;
}

constexpr bool is_mirror(std::uint64_t node) { return (node & kMirrorBit) != 0; }
constexpr bool is_query(std::uint64_t node) {
  return !is_mirror(node) && (node & QueryNodes::kQueryBit) != 0;
}
constexpr std::uint64_t mirrored(std::uint64_t node) { return node & ~(kControlBit | kMirrorBit); }
constexpr std::uint64_t query_number(std::uint64_t node) { return node & ~kControlBit; }

// The listings, by the node that gives all of one and the name before '?'.
struct ListName {
  std::string_view name;
  ListKind kind;
  Fixed whole;
};
constexpr std::array<ListName, 3> kLists{{{"list", ListKind::kGrants, Fixed::kList},
                                          {"waiters", ListKind::kWaiters, Fixed::kWaiters},
                                          {"filelock", ListKind::kFilelocks, Fixed::kFilelock}}};

constexpr ListKind kind_of(Fixed what) {
  if (what == Fixed::kFilelock) return ListKind::kFilelocks;
  return what == Fixed::kList ? ListKind::kGrants : ListKind::kWaiters;
}

}  // namespace latchfs::control
