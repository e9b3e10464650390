#include "crash/step_mount.h"

#include <unistd.h>

#include "base/clock.h"

namespace latchfs::test {

std::unique_ptr<QuietMount> join_quietly(const std::string& table, GrantSink& sink) {
  auto registry = shm::Registry::open(table);
  if (!registry || !registry->lock()) return nullptr;
  std::string name = registry->region_name();
  auto region = [&]() -> Result<std::unique_ptr<shm::Region>> {
    if (!name.empty()) return shm::Region::open(name);
    auto fresh = shm::Registry::fresh_region_name(table);
    if (!fresh) return fresh.error();
    if (const auto r = registry->set_region_name(*fresh); !r) return r.error();
    return shm::Region::create(*fresh, kStepTableBytes);
  }();
  if (!region) return nullptr;
  shm::Header& h = (*region)->header();
  std::uint32_t slot = 0;
  while (h.mounts[slot].id.load() != 0) ++slot;
  if (!registry->claim(slot)) return nullptr;
  const std::uint64_t id = h.next_mount_id.fetch_add(1);
  h.mounts[slot].pid = static_cast<std::uint32_t>(::getpid());
  h.mounts[slot].started_at = realtime_ns();
  h.mount_count.fetch_add(1);
  h.mounts[slot].id.store(id);
  registry->unlock();
  auto mount = std::make_unique<QuietMount>(std::move(*region), table, sink, slot, id);
  mount->claimed = std::move(*registry);
  return mount;
}

}  // namespace latchfs::test
