#include "transport/ring.h"

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "base/log.h"

namespace latchfs::transport {
namespace {

constexpr unsigned kSubmissions = 16;
// More may be under way: the kernel keeps what does not fit.
constexpr unsigned kCompletions = 64;

}  // namespace

Result<std::unique_ptr<Ring>> Ring::create(int device, int mail) {
  std::unique_ptr<Ring> made{new Ring{mail}};
  io_uring_params params{};
  // Completions are made by the thread itself when it waits: no signal, no work in between.
  params.flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE;
  params.cq_entries = kCompletions;
  io_uring ring{};
  if (const int err = ::io_uring_queue_init_params(kSubmissions, &ring, &params); err != 0) {
    return errno_code(-err);
  }
  made->ring_ = ring;
  // A child that asks whether the mount answers must not keep the session by its copy of the ring.
  if (const int err = ::io_uring_ring_dontfork(&made->ring_); err != 0) return errno_code(-err);
  if (const int err = ::io_uring_register_files(&made->ring_, &device, 1); err != 0) {
    return errno_code(-err);
  }
  // Saves looking the descriptor up each time; nothing is lost without.
  ::io_uring_register_ring_fd(&made->ring_);
  made->listen();
  return made;
}

Ring::~Ring() {
  if (ring_.ring_fd > 0) ::io_uring_queue_exit(&ring_);
}

io_uring_sqe* Ring::slot() noexcept {
  io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
  if (sqe != nullptr) return sqe;
  // Full: the kernel takes all of it (IORING_SETUP_SUBMIT_ALL).
  const auto submitted = submit();
  sqe = ::io_uring_get_sqe(&ring_);
  if (sqe == nullptr) {
    // An answer would be lost, and somebody wait for it forever.
    log::error("a ring takes nothing more ({}); the daemon ends",
               submitted ? "full" : submitted.error().message());
    std::abort();
  }
  return sqe;
}

void Ring::add(RingEntry& entry, std::uint32_t command) noexcept {
  io_uring_sqe* sqe = slot();
  ::io_uring_prep_rw(IORING_OP_URING_CMD, sqe, 0, nullptr, 0, 0);
  sqe->flags = IOSQE_FIXED_FILE;
  sqe->cmd_op = command;
  if (command == wire::kRingRegister) {
    sqe->addr = reinterpret_cast<std::uintptr_t>(entry.vectors.data());
    sqe->len = static_cast<std::uint32_t>(entry.vectors.size());
  }
  ::io_uring_sqe_set_data(sqe, &entry);
  wire::RingCommand body{};
  body.queue = entry.queue;
  body.commit_id = command == wire::kRingRegister ? 0 : entry.commit_id;
  std::memcpy(reinterpret_cast<char*>(sqe) + offsetof(io_uring_sqe, cmd), &body, sizeof body);
}

void Ring::add_register(RingEntry& entry) noexcept { add(entry, wire::kRingRegister); }
void Ring::add_commit(RingEntry& entry) noexcept { add(entry, wire::kRingCommitAndFetch); }

void Ring::listen() noexcept {
  io_uring_sqe* sqe = slot();
  ::io_uring_prep_read(sqe, mail_, &mail_count_, sizeof mail_count_, 0);
  ::io_uring_sqe_set_data(sqe, nullptr);
}

Result<void> Ring::submit() noexcept {
  const int done = ::io_uring_submit(&ring_);
  return done < 0 ? Result<void>{errno_code(-done)} : Result<void>{};
}

Result<void> Ring::wait() noexcept {
  const int done = ::io_uring_submit_and_wait(&ring_, 1);
  // Interrupted, or short of memory for a moment: what is there is looked at, then again.
  if (done < 0 && done != -EINTR && done != -EAGAIN && done != -EBUSY) return errno_code(-done);
  return {};
}

bool Ring::next(Completion& completion) noexcept {
  io_uring_cqe* cqe = nullptr;
  if (!has_next()) return false;
  if (::io_uring_peek_cqe(&ring_, &cqe) != 0 || cqe == nullptr) return false;
  completion.entry = static_cast<RingEntry*>(::io_uring_cqe_get_data(cqe));
  completion.result = cqe->res;
  ::io_uring_cqe_seen(&ring_, cqe);
  if (completion.entry == nullptr) listen();
  return true;
}

}  // namespace latchfs::transport
