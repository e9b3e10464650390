// What store tests share: a sink that remembers, unique table names, a way to make each store.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "latchfs/lock_service.h"
#include "store/memory/memory_store.h"
#include "store/shm/shm_store.h"

namespace latchfs::test {

class RecordingSink final : public GrantSink {
 public:
  enum class Losses : std::uint8_t { kNever, kExpected };
  explicit RecordingSink(Losses losses = Losses::kNever) : losses_expected_{losses} {}
  void granted(WaiterToken token) noexcept override { note(token, 0); }
  void refused(WaiterToken token, int err) noexcept override { note(token, err); }
  void lost(const std::function<bool(FileId)>& concerns) noexcept override {
    if (losses_expected_ == Losses::kNever) ::abort();  // a sound table was taken for damaged
    const std::lock_guard hold{mu_};
    losses_.push_back(concerns);
    changed_.notify_all();
  }
  // Waits until what is known of the file's locks is lost; false after a minute.
  bool await_loss(FileId file) {
    std::unique_lock hold{mu_};
    return changed_.wait_for(hold, std::chrono::seconds{60}, [&] {
      return std::any_of(losses_.begin(), losses_.end(),
                         [&](const auto& concerns) { return concerns(file); });
    });
  }

  std::optional<int> outcome(std::uint64_t token) {
    const std::lock_guard hold{mu_};
    const auto it = over_.find(token);
    if (it == over_.end()) return std::nullopt;
    return it->second;
  }
  // Waits until the token is over; nullopt after a minute: hung.
  std::optional<int> await(std::uint64_t token) {
    std::unique_lock hold{mu_};
    if (!changed_.wait_for(hold, std::chrono::seconds{60},
                           [&] { return over_.count(token) != 0; })) {
      return std::nullopt;
    }
    return over_[token];
  }
  std::vector<std::uint64_t> order() {
    const std::lock_guard hold{mu_};
    return order_;
  }

 private:
  void note(WaiterToken token, int err) {
    const std::lock_guard hold{mu_};
    if (!over_.emplace(token.raw, err).second) ::abort();  // told twice
    order_.push_back(token.raw);
    changed_.notify_all();
  }
  const Losses losses_expected_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::map<std::uint64_t, int> over_;
  std::vector<std::uint64_t> order_;
  std::vector<std::function<bool(FileId)>> losses_;
};

// The tables this process named, removed when it ends: the file that names a table's memory stays
// otherwise, for whoever attaches next (docs/recovery.md).
class OwnTables {
 public:
  OwnTables() = default;
  OwnTables(const OwnTables&) = delete;
  OwnTables& operator=(const OwnTables&) = delete;
  ~OwnTables() {
    if (::getpid() != creator_) return;
    for (const std::string& name : names_) {
      const std::string file = "/run/latchfs/" + name + ".table";
      std::string region;
      std::getline(std::ifstream{file}, region);
      if (region.rfind("latchfs-" + name, 0) == 0) ::unlink(("/dev/shm/" + region).c_str());
      ::unlink(file.c_str());
    }
  }
  const std::string& add(std::string name) {
    const std::lock_guard hold{mu_};
    return names_.emplace_back(std::move(name));
  }

 private:
  pid_t creator_{::getpid()};
  std::mutex mu_;
  std::deque<std::string> names_;
};

inline std::string unique_table() {
  static OwnTables tables;
  static std::atomic<int> n{0};
  return tables.add("test-" + std::to_string(::getpid()) + "-" + std::to_string(n++) + "-" +
                    std::to_string(std::random_device{}()));
}

inline std::unique_ptr<LockService> make_store(const std::string& kind, GrantSink& sink,
                                               const std::string& table = unique_table()) {
  if (kind == "memory") return make_memory_store(sink);
  ShmStore::Options options;
  options.table = table;
  options.table_max = 256ULL << 20;
  auto store = ShmStore::attach(options, sink);
  if (!store) return nullptr;
  return std::move(*store);
}

// Fixed seeds, and a fresh one a run that a failure prints.
inline std::vector<std::uint64_t> seeds(std::vector<std::uint64_t> fixed = {1, 2, 3, 8812, 977}) {
  if (const char* one = std::getenv("LATCHFS_SEED")) return {std::stoull(one)};
  fixed.push_back(std::random_device{}());
  return fixed;
}

}  // namespace latchfs::test
