// Mounts for the single-stepping crash test: the stores' own code, with no threads beside it, so
// that nothing but the act that is looked at changes the table.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "store/shm/registry.h"
#include "store/shm/shm_backend.h"
#include "store/table_service.h"

namespace latchfs::test {

// Bytes of the tables here: mapped again and again, so small.
inline constexpr std::uint64_t kStepTableBytes = 20ULL << 20;
static_assert(kStepTableBytes >= shm::kMinRegion);

// What a mount's waiters were told, by token; -1: told twice.
class TellTale final : public GrantSink {
 public:
  void granted(WaiterToken token) noexcept override { note(token, 0); }
  void refused(WaiterToken token, int err) noexcept override { note(token, err); }
  [[nodiscard]] const std::map<std::uint64_t, int>& told() const { return told_; }

 private:
  void note(WaiterToken token, int err) {
    if (!told_.emplace(token.raw, err).second) told_[token.raw] = -1;
  }
  std::map<std::uint64_t, int> told_;
};

template <class Backend>
class QuietService final : public TableService<Backend> {
 public:
  QuietService(std::unique_ptr<shm::Region> region, const std::string& table, GrantSink& sink,
               std::uint32_t slot, std::uint64_t id)
      : TableService<Backend>{std::move(region), table, sink, std::uint64_t{1'000'000}} {
    this->backend_.registered(slot, id);
  }
  Result<TableStats> stats() override { return this->backend_.stats(); }
  [[nodiscard]] shm::Region& region() { return this->backend_.region(); }
  [[nodiscard]] std::uint32_t slot() const { return this->backend_.slot(); }
  Backend& backend() { return this->backend_; }
  using TableService<Backend>::collect_ready;
  using TableService<Backend>::reap_mount;

  // Its byte in the registry, while it lives.
  std::optional<shm::Registry> claimed;
};
using QuietMount = QuietService<shm::ShmBackend>;

// Registers as a mount; makes the table if there is none. Null: it could not.
std::unique_ptr<QuietMount> join_quietly(const std::string& table, GrantSink& sink);

// Another voice of a mount that is registered already. `Backend`: whose code does it.
template <class Backend>
std::unique_ptr<QuietService<Backend>> speak_for(const std::string& table, GrantSink& sink,
                                                 std::uint32_t slot, std::uint64_t id) {
  const auto registry = shm::Registry::open(table);
  if (!registry) return nullptr;
  auto region = shm::Region::open(registry->region_name());
  if (!region) return nullptr;
  return std::make_unique<QuietService<Backend>>(std::move(*region), table, sink, slot, id);
}

}  // namespace latchfs::test
