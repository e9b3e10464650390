// Our place with this machine's rpcbind, which tells clients the port of a program.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "latchfs/result.h"

namespace latchfs::nlm {

// Takes the place of the kernel's lockd: program 100021, version 4 only (versions 1 and 3 are for
// NFS version 2, which is none of ours). What was registered before is registered again at the end,
// unless somebody else is there by then.
//
// Not thread-safe; it waits for rpcbind, up to a minute.
class Registration {
 public:
  // netids: "udp", "tcp", "udp6", "tcp6". memory: a file that says what was there before, so that a
  // run that dies does not pass for what was before to the next one. ENOTCONN: rpcbind does not
  // answer; EPERM: it refuses.
  static Result<Registration> take(const std::vector<std::string>& netids, std::uint16_t port,
                                   std::string memory);
  Registration(Registration&& other) noexcept;
  Registration& operator=(Registration&&) = delete;
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  ~Registration();

  // What was there: "udp 0.0.0.0.3.4", ...
  [[nodiscard]] std::string before() const;

  // Looks whether the place is ours still, and takes it back if it is not and looks as it did the
  // last time: lockd takes it whenever the kernel's server starts, in several steps, and that fails
  // if we come in between. Who was there is registered again at the end, instead of who was there
  // at first. Errors as take(), after which the next call tries again.
  enum class Kept : std::uint8_t { kOurs, kAstray, kTakenBack };
  Result<Kept> keep();

 private:
  struct Entry {
    std::string netid, address;
    bool operator==(const Entry&) const = default;
  };
  Registration() = default;
  static Result<std::vector<Entry>> registered();
  static bool enter(const Entry& entry);
  Result<void> enter_ours() const;
  static bool contains(const std::vector<Entry>& entries, const Entry& entry);
  void remember() const;
  // What an earlier run remembered, if all of `now` is that run's.
  static std::optional<std::vector<Entry>> remembered(const std::string& memory,
                                                      const std::vector<Entry>& now);

  std::string memory_;
  std::vector<Entry> before_;
  std::vector<Entry> ours_;
  std::optional<std::vector<Entry>> astray_;  // the last look, if the place was not ours then
  bool failed_{};                             // to take it back
};

}  // namespace latchfs::nlm
