// Operations that find nothing on their file: no mutex, no system call.
#include "store/shm/shm_backend.h"
#include "store/shm/slot_use.h"

namespace latchfs::shm {
// First the operation says that it is there, then it looks; who gives a file its record does the
// opposite. So one of the two sees the other: docs/table.md, "Looking without the mutex".
bool ShmBackend::begin_outside(const LockService::OpRequest& op) noexcept {
  // (Only spares what would be withdrawn.)
  if (op.op.mount != mount_id_ || !nothing_on(op.file)) return false;
  fault_point("shm.op_begins");
  OpSlot* const slot = region_->operations().publish(slot_, op, about_now_ns());
  if (slot == nullptr) return false;
  fault_point("shm.op_published");
  const bool nothing = nothing_on(op.file);
  fault_point("shm.op_looked");
  return nothing || !OpTable::withdraw(*slot);
}

bool ShmBackend::end_outside(OwnerId op) noexcept {
  return op.mount == mount_id_ && region_->operations().over(slot_, op.key);
}

}  // namespace latchfs::shm
