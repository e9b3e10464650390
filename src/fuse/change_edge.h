// Who may modify a file on which there is, or may be, a filelock: asked by every handler that
// modifies anything, before it does (CONTRACT section 4, docs/design.md "Filelocks").
//
// Thread-safe. The calling thread may be acting as any caller, and may be the daemon afterwards.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "base/caller.h"
#include "base/seldom.h"
#include "fuse/open_file.h"
#include "latchfs/change_gate.h"
#include "latchfs/result.h"
#include "latchfs/types.h"

namespace latchfs::fuse {

// Leave to modify one file, which is in flight as long as this lives.
class ChangePass {
 public:
  ChangePass() = default;
  ChangePass(ChangeGate& gate, ChangeTicket ticket) : gate_{&gate}, ticket_{ticket} {}
  ChangePass(ChangePass&& o) noexcept
      : gate_{std::exchange(o.gate_, nullptr)}, ticket_{o.ticket_} {}
  ChangePass& operator=(ChangePass&& o) noexcept {
    std::swap(gate_, o.gate_);
    std::swap(ticket_, o.ticket_);
    return *this;
  }
  ChangePass(const ChangePass&) = delete;
  ChangePass& operator=(const ChangePass&) = delete;
  ~ChangePass() {
    if (gate_ != nullptr) gate_->end_change(ticket_);
  }

 private:
  ChangeGate* gate_{};
  ChangeTicket ticket_;
};

class ChangeEdge {
 public:
  using IsAdmin = std::function<bool(const Caller&)>;
  // list: whether what is in flight is to be listed (nobody else does).
  ChangeEdge(ChangeGate& gate, IsAdmin is_admin, bool list)
      : gate_{gate}, is_admin_{std::move(is_admin)}, list_{list} {}

  // Bytes of an open file. EACCES: filelocked by another user. EBUSY: it is being locked or
  // unlocked, for longer than anybody should wait. No system call where nothing has changed since
  // the last time.
  Result<ChangePass> admit(OpenFile& file, ByteRange range, const Caller& caller);
  // Anything else about the file behind a descriptor of any kind. `refusal` instead of EACCES where
  // the call has an error of its own for "not yours" (chmod(2): EPERM).
  Result<ChangePass> admit(int fd, FileId file, const Caller& caller, int refusal);
  // The bytes of a file that is open nowhere yet, or cut by name.
  Result<ChangePass> admit(int fd, FileId file, ByteRange range, const Caller& caller);

  // What a call gives a name to or takes one from.
  struct Named {
    int fd{};
    FileId file;
  };
  // All that has the names in question, found anew each time it is asked.
  using FindNamed = std::function<Result<std::vector<Named>>()>;
  // Names in a directory (or two on the same device). Whoever locks a file waits for all names in
  // flight, not for those of the file only: which file a name leads to is what they change.
  Result<ChangePass> admit_names(FileId directory, const FindNamed& find, const Caller& caller);
  // What stands for the names on a directory's device among the changes in flight: no file has it.
  static FileId names_of(FileId directory) { return {directory.dev, 0}; }

  // The uid of a transition that nobody asked for: what was begun before is settled.
  static constexpr std::uint32_t kForNobody = 0xFFFFFFFE;

  // Whether nobody but he who locked it and admins may modify it now: for what is written back of
  // pages that several may have written to, so that it cannot be said who.
  bool is_locked(const OpenFile& file);
  [[nodiscard]] bool is_admin(const Caller& caller) const { return is_admin_(caller); }

 private:
  // Who may modify a file besides admins: everybody, nobody, or one uid.
  using Allowed = std::uint32_t;
  static constexpr Allowed kEverybody = 0xFFFFFFFF;
  static constexpr Allowed kNobody = 0xFFFFFFFE;
  struct Verdict {
    Allowed allowed{};
    bool passing{};  // a transition: it will be something else soon
  };

  Result<ChangePass> admit(int fd, const Change& change, std::atomic<std::uint64_t>* known,
                           const Caller& caller, int refusal);
  Verdict look(int fd, FileId file, std::uint64_t version, std::atomic<std::uint64_t>* known);
  // Whether he need not be refused.
  [[nodiscard]] bool may(const Verdict& verdict, const Caller& caller) const {
    // (Uid 0 is an admin, unless a thread of the kernel works for somebody else by it.)
    const bool his = caller.uid == verdict.allowed && caller.uid != 0;
    return verdict.allowed == kEverybody || his || is_admin_(caller);
  }
  // Sleeps a moment; false: for too long by now. deadline: 0 at first.
  static bool wait_a_moment(std::int64_t& deadline);
  std::error_code refuse(FileId file, const Caller& caller, Allowed allowed, int refusal);

  ChangeGate& gate_;
  const IsAdmin is_admin_;
  const bool list_;
  Seldom refused_{1'000'000'000};  // the log says it once a second
  Seldom damaged_{1'000'000'000};
};

}  // namespace latchfs::fuse
