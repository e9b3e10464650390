// The nodes behind names like `list?pid=7`: made when looked up, shared by all names that ask the
// same, bounded in number.
//
// The kernel keeps what it looked up for as long as it likes, and any user can look up any number
// of names. So the nodes are a cache: beyond kMaxNodes the one used least recently gives way, those
// that the kernel forgot first, never one that is open. A node that gave way is ESTALE, upon which
// the kernel looks its name up again and gets the same number: numbers are made from the query, so
// that file handles of NFS clients stay good, over a restart as well once the name is looked up.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>

#include "base/mutex.h"
#include "control/query.h"
#include "latchfs/result.h"

namespace latchfs::control {

class QueryNodes {
 public:
  static constexpr std::size_t kMaxNodes = 4096;
  // Set in all numbers given out here (below kControlBit, which the tree adds).
  static constexpr std::uint64_t kQueryBit = std::uint64_t{1} << 61;

  struct Node {
    ListKind kind{};
    Query query;
  };

  // The node's number; referenced once more. ENFILE if all nodes are open.
  Result<std::uint64_t> look_up(ListKind kind, const Query& query);
  void forget(std::uint64_t number, std::uint64_t count) noexcept;
  std::optional<Node> find(std::uint64_t number);
  // While it is open a node does not give way. No effect on numbers that are not known.
  void opened(std::uint64_t number);
  void closed(std::uint64_t number) noexcept;
  std::size_t size();

 private:
  struct Entry {
    std::uint64_t number{};
    std::string name;  // kind and canonical query
    Node node;
    std::uint64_t references{};
    std::uint64_t opens{};
  };
  using Entries = std::list<Entry>;

  bool make_room() REQUIRES(mu_);

  Mutex mu_;                         // held over no call out
  Entries entries_ GUARDED_BY(mu_);  // the most recently used first, the forgotten last
  std::unordered_map<std::uint64_t, Entries::iterator> by_number_ GUARDED_BY(mu_);
};

}  // namespace latchfs::control
