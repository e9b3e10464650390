#include "nlm/registration.h"

#include <fmt/core.h>
#include <netconfig.h>
#include <rpc/rpc.h>
#include <rpc/rpcb_clnt.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "nlm/protocol.h"

namespace latchfs::nlm {
namespace {

struct FreeConfig {
  void operator()(netconfig* config) const { ::freenetconfigent(config); }
};
using Config = std::unique_ptr<netconfig, FreeConfig>;

Config config_of(const std::string& netid) { return Config{::getnetconfigent(netid.c_str())}; }

}  // namespace

// Of the program's version 4, by the machine's own socket, or its loopback address.
Result<std::vector<Registration::Entry>> Registration::registered() {
  for (const auto& [netid, host] : {std::pair{"local", "localhost"}, {"udp", "127.0.0.1"}}) {
    const Config config = config_of(netid);
    if (!config) continue;
    // An empty list is no list, too: rpcbind always has itself.
    rpcblist* const all = ::rpcb_getmaps(config.get(), host);
    if (all == nullptr) continue;
    std::vector<Entry> out;
    for (const rpcblist* one = all; one != nullptr; one = one->rpcb_next) {
      if (one->rpcb_map.r_prog == kNlmProgram && one->rpcb_map.r_vers == kNlmVersion) {
        out.push_back({one->rpcb_map.r_netid, one->rpcb_map.r_addr});
      }
    }
    ::xdr_free(reinterpret_cast<xdrproc_t>(::xdr_rpcblist_ptr),
               const_cast<rpcblist**>(&std::as_const(all)));
    return out;
  }
  return errno_code(ENOTCONN);
}

bool Registration::enter(const Entry& entry) {
  const Config config = config_of(entry.netid);
  if (!config) return false;
  netbuf* const address = ::uaddr2taddr(config.get(), entry.address.c_str());
  if (address == nullptr) return false;
  const bool ok = ::rpcb_set(kNlmProgram, kNlmVersion, config.get(), address) != FALSE;
  std::free(address->buf);
  std::free(address);
  return ok;
}

// Lines "ours|before NETID ADDRESS".
void Registration::remember() const {
  std::ofstream out{memory_, std::ios::trunc};
  for (const Entry& entry : ours_) out << "ours " << entry.netid << ' ' << entry.address << '\n';
  for (const Entry& entry : before_) {
    out << "before " << entry.netid << ' ' << entry.address << '\n';
  }
  if (!out.flush()) log::warn("{} cannot be written", log::printable(memory_));
}

std::optional<std::vector<Registration::Entry>> Registration::remembered(
    const std::string& memory, const std::vector<Entry>& now) {
  std::ifstream in{memory};
  std::vector<Entry> ours;
  std::vector<Entry> before;
  std::string what;
  for (Entry entry; in >> what >> entry.netid >> entry.address;) {
    (what == "ours" ? ours : before).push_back(entry);
  }
  const bool its_own = std::all_of(now.begin(), now.end(),
                                   [&](const Entry& entry) { return contains(ours, entry); });
  if (now.empty() || !its_own) return std::nullopt;
  return before;
}

Result<Registration> Registration::take(const std::vector<std::string>& netids, std::uint16_t port,
                                        std::string memory) {
  auto now = registered();
  if (!now) return now.error();
  Registration out;
  out.memory_ = std::move(memory);
  auto earlier = remembered(out.memory_, *now);
  out.before_ = earlier ? std::move(*earlier) : std::move(*now);
  // Remembered before it is done: dying in between, nothing of ours is found, and what is found
  // counts.
  for (const std::string& netid : netids) {
    const char* const any = netid.ends_with('6') ? "::" : "0.0.0.0";
    out.ours_.push_back({netid, fmt::format("{}.{}.{}", any, port / 256, port % 256)});
  }
  out.remember();
  if (const auto entered = out.enter_ours(); !entered) return entered.error();  // (undone)
  return out;
}

Result<void> Registration::enter_ours() const {
  ::rpcb_unset(kNlmProgram, kNlmVersion, nullptr);
  const bool all = std::all_of(ours_.begin(), ours_.end(), enter);
  return all ? std::error_code{} : errno_code(EPERM);
}

bool Registration::contains(const std::vector<Entry>& entries, const Entry& entry) {
  return std::find(entries.begin(), entries.end(), entry) != entries.end();
}

Result<Registration::Kept> Registration::keep() {
  auto now = registered();
  if (!now) return now.error();
  const auto still_ours = std::count_if(
      now->begin(), now->end(), [this](const Entry& entry) { return contains(ours_, entry); });
  if (now->size() == ours_.size() && still_ours == static_cast<std::ptrdiff_t>(ours_.size())) {
    astray_.reset();
    failed_ = false;
    return Kept::kOurs;
  }
  if (!failed_ && (!astray_ || *astray_ != *now)) {
    astray_ = std::move(*now);
    return Kept::kAstray;
  }
  std::vector<Entry> others;
  std::copy_if(now->begin(), now->end(), std::back_inserter(others),
               [this](const Entry& entry) { return !contains(ours_, entry); });
  if (!others.empty()) {
    before_ = std::move(others);
  } else if (still_ours == 0 && !failed_) {
    before_.clear();  // nobody at all: who was there before has gone, too
  }
  remember();
  const auto entered = enter_ours();
  failed_ = !entered;
  if (failed_) return entered.error();
  astray_.reset();
  return Kept::kTakenBack;
}

Registration::Registration(Registration&& other) noexcept
    : memory_{std::move(other.memory_)},
      before_{std::exchange(other.before_, {})},
      ours_{std::exchange(other.ours_, {})} {}

std::string Registration::before() const {
  std::string out;
  for (const Entry& entry : before_) {
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", entry.netid, entry.address);
  }
  return out;
}

Registration::~Registration() {
  if (ours_.empty() && before_.empty()) return;
  try {
    const auto now = registered();
    if (!now) {
      log::warn("rpcbind is not there: it does not learn that we end");
      return;
    }
    if (!std::all_of(now->begin(), now->end(),
                     [this](const Entry& entry) { return contains(ours_, entry); })) {
      log::info("somebody else is registered in our place by now, and stays");
      return;
    }
    ::rpcb_unset(kNlmProgram, kNlmVersion, nullptr);
    for (const Entry& entry : before_) {
      if (!enter(entry)) {
        log::warn("rpcbind does not take back what was registered before: {} {}", entry.netid,
                  log::printable(entry.address));
      }
    }
    ::unlink(memory_.c_str());
  } catch (const std::exception& e) {
    log::error("rpcbind does not learn that we end: {}", e.what());
  }
}

}  // namespace latchfs::nlm
