// The lock manager itself: what each procedure does, who holds what, who waits, and whom to call
// back. Knows no bytes and no sockets.
//
// Sources: XNFS chapter 10, and where that leaves it open what lockd does
// (linux/fs/lockd/svclock.c, svc4proc.c, svcshare.c), since that is what clients are tested
// against.
//
// Requests on one file take turns (File::mu, held over calls of the lock service, which never
// wait). Nothing is held over system calls of ours, statd, clients, or the mount.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/seldom.h"
#include "latchfs/lock_service.h"
#include "nlm/files.h"
#include "nlm/held_ranges.h"
#include "nlm/hosts.h"
#include "nlm/outcalls.h"
#include "nlm/outside.h"
#include "nlm/protocol.h"
#include "nlm/range_union.h"
#include "nlm/siphash.h"
#include "nlm/waits.h"

namespace latchfs::nlm {

// Where a request came from.
struct Source {
  std::string address;  // numeric
  std::string local;    // our address it was sent to
  bool tcp{};
};

class LockDesk {
 public:
  struct Options {
    // After start only what was held before is given, to who reclaims it; ns.
    std::int64_t grace_ns{};
    // A client that is told of its grant hears of it again after the first, then twice that, and so
    // on up to the longest, until it answers or the patience ends. If nothing can have reached it
    // by then the lock is given back; else it keeps it, as it may well believe to have it.
    std::int64_t first_pause_ns{1'000'000'000};
    std::int64_t longest_pause_ns{30'000'000'000};
    std::int64_t grant_patience_ns{120'000'000'000};
    // For an answer to one such call.
    std::chrono::milliseconds call_patience{2000};
    // Of the hosts of one address together.
    std::uint32_t most_waiting{4096};
    std::uint32_t most_shares{4096};
    std::uint32_t most_held{16'384};      // files with locks, each as often as it has owners
    std::uint64_t most_locks{1'000'000};  // grants, as of one user in the table
    std::size_t most_idle_files{1024};
    std::int64_t idle_file_ns{2'000'000'000};
    // So long after the books were compared with the table they are again.
    std::int64_t compare_ns{10'000'000'000};
    std::int64_t admission_ns{2'000'000'000};  // how long a leave to lock a file is believed
  };

  // How LOCK was asked for.
  struct Manner {
    bool monitored{true};  // not NM_LOCK
    bool message{};        // LOCK_MSG: GRANTED_MSG will tell of the end of a wait
  };

  // waits: the sink that `locks` tells. All must outlive this, outcalls until shutdown() returned.
  LockDesk(Options options, LockService& locks, Waits& waits, Files& files, Hosts& hosts,
           Outside& outside, Outcalls& outcalls);
  ~LockDesk();
  LockDesk(const LockDesk&) = delete;
  LockDesk& operator=(const LockDesk&) = delete;

  // The procedures. Any thread; they may wait for the mount's daemon and for statd.
  TestAnswer test(const LockCall& call, const Source& from, const User& user);
  Status lock(const LockCall& call, const Source& from, const User& user, Manner manner);
  Status cancel(const LockCall& call, const Source& from);
  Status unlock(const LockCall& call, const Source& from);
  Status share(const ShareCall& call, const Source& from, const User& user);
  Status unshare(const ShareCall& call, const Source& from);
  // GRANTED_RES: the answer to a GRANTED_MSG of ours.
  void granted_answer(const Answer& answer);
  void free_all(const FreeCall& call, const Source& from);
  // All that hosts of the address had is given back, but for what they asked for since. state: the
  // number of the life that has begun (NSM's: odd, two more each time; LOCK tells it as well).
  void client_restarted(const std::string& address, std::int32_t state);

  [[nodiscard]] bool in_grace() const noexcept;
  // Once a second or so: lets go of what is not used.
  void let_go();
  // Ends callbacks. Requests must have ended; the locks go with the store.
  void shutdown() noexcept;

  // What there is, for the log and for tests.
  struct Figures {
    std::size_t files{};    // open, held or not
    std::size_t held{};     // of them with locks, waits or shares
    std::size_t waiting{};  // and those whose grant is not acknowledged
    std::size_t untold{};   // of them, those for whose call there was no place
  };
  [[nodiscard]] Figures figures() EXCLUDES(mu_);

 private:
  struct File;
  using FilePtr = std::shared_ptr<File>;

  // A request that waits, or has been granted and waits for its client's word.
  struct Block {
    enum class State : std::uint8_t { kWaiting, kGranted, kOver };
    WaiterToken token;
    HostPtr host;
    FilePtr file;
    OwnerId owner;
    ByteRange range;
    LockMode mode{};
    Holder holder;
    // The rest: File::mu of `file`.
    State state{State::kWaiting};
    What what;
    Source from;
    bool message{};
    std::int32_t life{};        // of the client's, as LOCK told it
    std::int64_t granted_at{};  // monotonic ns
    std::int64_t pause{};       // before it is told again
    // So often it may have heard of its grant without our having its answer.
    unsigned unanswered{};
    // What the owner held of the range, apart from what the wait brought: stays when that goes.
    HeldRanges before;
    bool untold{};  // LockDesk::mu_: there was no place for its call; then it is in blocks_
  };
  using BlockPtr = std::shared_ptr<Block>;

  struct Holding {
    HostPtr host;
    std::int32_t svid{};
    std::int32_t life{};  // in which all of it was asked for; 0: it may be more than one
    HeldRanges ranges;
    RangeUnion owed;  // of them, what is to be given back and could not be: let_go() tries again
  };
  struct Share {
    HostPtr host;
    std::string owner;
    std::uint32_t deny{};
    std::uint32_t access{};
  };
  struct Admission {
    User user;
    std::int64_t at{};
  };

  struct File {
    File(const NfsHandle& its_handle, FileId its_id, bool is_read_only)
        : handle{its_handle}, id{its_id}, read_only{is_read_only} {}
    const NfsHandle handle;
    const FileId id;
    const bool read_only;
    // Holdings, blocks and shares: while there are any the file is kept.
    std::atomic<std::uint32_t> interest{0};
    std::int64_t last_used{};  // LockDesk::mu_

    Mutex mu;
    OpenFilePtr open GUARDED_BY(mu);
    std::map<std::uint64_t, Holding> held GUARDED_BY(mu);  // by OwnerId::key
    std::vector<BlockPtr> blocks GUARDED_BY(mu);
    std::vector<Share> shares GUARDED_BY(mu);
    std::vector<Admission> admissions GUARDED_BY(mu);
  };

  // How the end of a wait that we ask for turned out.
  enum class Ended : std::uint8_t { kCancelled, kGranted, kRefused };

  // Who asks, as he was when he did: to be looked at before anything that may wait. A host that is
  // not known yet begins with epoch 0; one that is known stays so while this lives.
  struct Asker {
    HostPtr host;
    std::uint64_t epoch{};
  };
  [[nodiscard]] Asker asker_of(const std::string& caller, const Source& from);
  [[nodiscard]] OwnerId owner_of(const What& what, const Source& from) const;
  // Without a holder.
  [[nodiscard]] LockRequest request_for(const File& file, const LockCall& call, const Source& from,
                                        ByteRange range) const;
  // The owner, of those that hold something or wait, whose locks are meant to go. renamed: nobody
  // of that name has asked for a lock here of late.
  [[nodiscard]] OwnerId owner_meant_locked(File& file, const What& what, const Source& from,
                                           bool renamed) const REQUIRES(file.mu);
  // The file, if it is in use here.
  FilePtr known(const NfsHandle& handle) EXCLUDES(mu_);
  // The file, opened unless it is, when the user may lock it.
  Result<FilePtr> file_for(const NfsHandle& handle, const User& user) EXCLUDES(mu_);
  Result<FilePtr> enter_file(const NfsHandle& handle, OpenFilePtr open) EXCLUDES(mu_);
  void drop_idle_files(std::int64_t before) EXCLUDES(mu_);

  Status lock_on(File& file, const FilePtr& shared, const HostPtr& host, std::uint64_t epoch,
                 const LockRequest& request, const LockCall& call, const Source& from,
                 Manner manner) EXCLUDES(file.mu);
  Status wait_locked(File& file, const FilePtr& shared, const HostPtr& host,
                     const LockRequest& request, const LockCall& call, const Source& from,
                     Manner manner) REQUIRES(file.mu) EXCLUDES(mu_);
  static BlockPtr find_block_locked(File& file, OwnerId owner, ByteRange range,
                                    const LockMode* mode) REQUIRES(file.mu);
  // Enters what the wait has brought; given back if there is no memory for that.
  void enter_brought_locked(File& file, Block& block) REQUIRES(file.mu);
  Ended end_wait_locked(File& file, const BlockPtr& block) REQUIRES(file.mu);
  void remove_locked(File& file, const BlockPtr& block) noexcept REQUIRES(file.mu) EXCLUDES(mu_);
  // Ends the wait, and gives back what it may have brought, and no more.
  void undo_locked(File& file, const BlockPtr& block) REQUIRES(file.mu) EXCLUDES(mu_);
  // Whether the address may have one more lock on the file.
  [[nodiscard]] bool room_locked(File& file, const HostPtr& host, OwnerId owner) const
      REQUIRES(file.mu);
  // Enters a lock that was granted; given back if there is no memory for that.
  void hold_locked(File& file, const HostPtr& host, OwnerId owner, std::int32_t svid,
                   std::int32_t life, ByteRange range, LockMode mode) REQUIRES(file.mu);
  // The owner asked for this in that life.
  static void note_life(Holding& holding, std::int32_t life, ByteRange range);
  static void unhold_locked(File& file, OwnerId owner, ByteRange range) REQUIRES(file.mu);
  // Gives it back; later, if the table cannot now.
  Result<void> give_back_locked(File& file, OwnerId owner, ByteRange range) REQUIRES(file.mu);
  // Whether the owner has all of it in that mode: it is not to be given back then, and is of this
  // life.
  static bool has_locked(File& file, const LockRequest& request, std::int32_t life)
      REQUIRES(file.mu);
  void pay_debts() EXCLUDES(mu_);
  // Finds what an admin released: whoever held it is not told, and nobody else would let go of the
  // file. A part of the files each time.
  void compare_books() EXCLUDES(mu_);
  // The number of grants that were looked at.
  std::size_t compare_file(File& file) EXCLUDES(file.mu, mu_);
  // told: the life that has begun, 0 if it has no number. but: what was asked for in that one
  // stays; 0: nothing.
  void free_host(const HostPtr& host, std::int32_t told) EXCLUDES(mu_);
  void free_host_on(File& file, const HostPtr& host, std::int32_t but) EXCLUDES(file.mu, mu_);

  void watch_ends() noexcept;
  void wait_ended(const Waits::Event& event) EXCLUDES(mu_);
  BlockPtr find_block(WaiterToken token) EXCLUDES(mu_);
  // (What is to be called holds the token only: a block that is over, and its file, are kept by
  // nothing.)
  void deliver_at(std::int64_t at_ns, const BlockPtr& block) EXCLUDES(mu_);
  // Those for whom there was no place among the calls.
  void tell_untold() EXCLUDES(mu_);
  void deliver(const BlockPtr& block);
  // The client's answer to a grant; nothing: none came. unanswered: as Outside::exchange().
  void delivered(const BlockPtr& block, const Status* answer, unsigned unanswered);
  static void one_less_unanswered(Block& block);
  [[nodiscard]] std::string grant_cookie(WaiterToken token) const;

  const Options options_;
  const HashKey key_;
  const std::int64_t grace_until_;
  LockService& locks_;
  Waits& waits_;
  Files& files_;
  Hosts& hosts_;
  Outside& outside_;
  Outcalls& outcalls_;
  Seldom refused_{10'000'000'000};  // the table takes nothing back just now

  // Order: File::mu, then mu_.
  Mutex mu_;
  std::map<NfsHandle, FilePtr> by_handle_ GUARDED_BY(mu_);
  std::unordered_map<std::uint64_t, BlockPtr> blocks_ GUARDED_BY(mu_);  // by token
  std::size_t untold_ GUARDED_BY(mu_){0};                               // of them
  std::optional<NfsHandle> compared_ GUARDED_BY(mu_);                   // the last one of this turn
  std::int64_t compare_at_ GUARDED_BY(mu_){0};                          // the next turn
  std::size_t idle_limit_ GUARDED_BY(mu_);  // of by_handle_: look for idle ones beyond
  std::atomic<bool> debts_{false};          // some Holding::owed is not empty
  std::thread ends_;
};

}  // namespace latchfs::nlm
