// A lock manager for tests: real sockets above, a lock table in memory and files of the imagination
// below; who it calls is told to the test.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "latchfs/lock_service.h"
#include "nlm/address.h"
#include "nlm/codec.h"
#include "nlm/files.h"
#include "nlm/outside.h"
#include "nlm/protocol.h"
#include "nlm/rpc_message.h"
#include "nlm/service.h"

namespace latchfs::test {

// The file of node N is {7, N}. Some nodes are special.
class FakeFiles final : public nlm::Files {
 public:
  static constexpr std::uint64_t kGone = 404;
  static constexpr std::uint64_t kDirectory = 405;
  static constexpr std::uint64_t kAway = 406;  // its mount is not there
  static constexpr std::uint64_t kReadOnly = 407;
  static constexpr std::uint64_t kPrivate = 408;  // of kOwner alone
  static constexpr std::uint32_t kOwner = 1000;

  [[nodiscard]] bool exports(const nlm::Fsid& fsid) const override;
  Result<nlm::OpenFilePtr> open(const nlm::NfsHandle& handle) override;
  Result<void> may_lock(const nlm::OpenFile& file, const nlm::User& user) override;

  // Files that are open now.
  [[nodiscard]] std::size_t open_files() const { return *alive_; }
  // From here on the mounts of before are gone, and what was open of them.
  void remount() { ++generation_; }
  // Nothing can be opened.
  std::atomic<bool> away{false};
  std::atomic<int> opened{0};
  // Who opens something waits as long as this is so.
  std::atomic<bool> hangs{false};
  std::atomic<int> hanging{0};

 private:
  std::shared_ptr<std::atomic<std::size_t>> alive_ = std::make_shared<std::atomic<std::size_t>>(0);
  std::atomic<std::uint64_t> generation_{0};
  std::mutex mu_;
  std::map<const nlm::OpenFile*, std::uint64_t> generations_;
};

// Remembers what it is asked, and answers as the test says: by default granted, and that statd
// monitors.
class FakeOutside final : public nlm::Outside {
 public:
  struct Call {
    nlm::Where where;
    std::uint32_t program{};
    std::uint32_t procedure{};
    std::string arguments;
    bool told{};  // tell(): no answer
  };
  using Answer = std::function<Result<std::string>(const Call&)>;

  FakeOutside();
  Result<std::string> exchange(const nlm::Where& where, std::uint32_t program,
                               std::uint32_t version, std::uint32_t procedure,
                               std::string_view arguments, std::chrono::milliseconds patience,
                               unsigned& unanswered) override;
  Result<void> tell(const nlm::Where& where, std::uint32_t program, std::uint32_t version,
                    std::uint32_t procedure, std::string_view arguments,
                    std::chrono::milliseconds patience) override;

  void answer_by(Answer answer);
  // Is run by whoever tells something, before tell() returns; the word may have arrived by then.
  void when_told(std::function<void(const Call&)> then);
  // As many copies of a call that is answered went out in vain before. (Of one that is not: one,
  // or none where the error is that nobody can be reached.)
  std::atomic<unsigned> lost_copies{0};
  // Of the NLM program, or statd's.
  [[nodiscard]] std::vector<Call> calls(std::uint32_t program);
  // Waits until there are that many, a minute at most; then what there is.
  std::vector<Call> await(std::uint32_t program, std::size_t count);
  [[nodiscard]] static Result<std::string> granted_answer(const Call& call);

 private:
  Call note(const nlm::Where& where, std::uint32_t program, std::uint32_t procedure,
            std::string_view arguments, bool told);

  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<Call> calls_;
  Answer answer_;
  std::function<void(const Call&)> told_;
};

// What a client says and hears: RPC by hand.
class NlmClient {
 public:
  struct Options {
    std::string name{"client"};
    bool tcp{};
    std::string address{"127.0.0.1"};  // its own
    nlm::Credentials credentials{true, 1000, 1000, {}};
    std::string host{"127.0.0.1"};  // whom it asks
    bool reserved_port{};           // it speaks from one: root only, IPv4
  };
  NlmClient(std::uint16_t port, Options options);

  // The reply to one message; nothing within a minute (or what is given): none.
  std::optional<std::string> exchange(std::string_view message,
                                      std::chrono::milliseconds patience = std::chrono::minutes{1});
  void send(std::string_view message);
  // Bytes as they are, without a record mark.
  void send_raw(std::string_view bytes);
  std::optional<std::string> receive(std::chrono::milliseconds patience);
  // True: the other side has closed the connection.
  bool closed();

  [[nodiscard]] std::string message(nlm::Proc procedure, std::string_view arguments);
  // The results; throws if the call is not a success.
  std::string call(nlm::Proc procedure, std::string_view arguments);

  // A lock request with this client's name.
  [[nodiscard]] nlm::LockCall request(std::uint64_t node, std::uint64_t offset,
                                      std::uint64_t length, std::int32_t svid = 1) const;
  nlm::Status lock(const nlm::LockCall& call) {
    return ask(nlm::Proc::kLock, nlm::Form::kLock, call);
  }
  nlm::Status cancel(const nlm::LockCall& call) {
    return ask(nlm::Proc::kCancel, nlm::Form::kCancel, call);
  }
  nlm::Status unlock(const nlm::LockCall& call) {
    return ask(nlm::Proc::kUnlock, nlm::Form::kUnlock, call);
  }
  nlm::TestAnswer test(const nlm::LockCall& call);
  nlm::Status ask(nlm::Proc procedure, nlm::Form form, const nlm::LockCall& call);
  nlm::Status ask_share(nlm::Proc procedure, const nlm::ShareCall& call);

  Options options;
  std::uint32_t xid{1};

 private:
  UniqueFd fd_;
  std::string in_;
};

[[nodiscard]] std::string handle_of(std::uint64_t node, std::uint32_t fsid = 1);

class NlmWorld {
 public:
  NlmWorld() : NlmWorld(quick()) {}
  explicit NlmWorld(nlm::Service::Options options, nlm::Outside* outside = nullptr);
  ~NlmWorld();

  // No grace, patience of fractions of a second, one loopback address.
  static nlm::Service::Options quick();

  [[nodiscard]] NlmClient client(const std::string& name = "client", bool tcp = false) {
    return NlmClient{port(), {name, tcp}};
  }
  [[nodiscard]] std::uint16_t port() const { return service->port(); }
  // A lock of this machine: of another owner than any client.
  Acquired local_lock(std::uint64_t node, ByteRange range, LockMode mode = LockMode::kExclusive,
                      std::uint64_t key = 1);
  void local_unlock(std::uint64_t node, ByteRange range, std::uint64_t key = 1);
  // "MODE BEGIN SIZE pid" of all grants on a file.
  [[nodiscard]] std::vector<std::string> grants(std::uint64_t node);
  [[nodiscard]] std::size_t waiters(std::uint64_t node);
  // Waits until the condition holds, a minute at most: what it was at the end.
  static bool await(const std::function<bool()>& condition);

  nlm::Waits waits;
  std::unique_ptr<LockService> store;
  FakeFiles files;
  FakeOutside outside;
  std::unique_ptr<nlm::Service> service;
};

}  // namespace latchfs::test
