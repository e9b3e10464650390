#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "support/fs_exec.h"

namespace latchfs::fsdiff {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::int64_t kFarOff = std::int64_t{1} << 43;  // file systems differ in their limits
constexpr std::size_t kLargest = std::size_t{1} << 20;

// Page-aligned, so that O_DIRECT descriptors take it.
struct Free {
  void operator()(char* p) const { std::free(p); }  // NOLINT: from aligned_alloc
};
std::unique_ptr<char, Free> buffer(std::size_t size) {
  const std::size_t whole = (size + kPage) / kPage * kPage;
  std::unique_ptr<char, Free> out{static_cast<char*>(std::aligned_alloc(kPage, whole))};
  std::memset(out.get(), 0, whole);
  return out;
}

std::size_t bounded(std::int64_t size) {
  if (size < 0) return 0;
  const auto n = static_cast<std::size_t>(size);
  return n < kLargest ? n : kLargest;
}

std::array<iovec, 3> three(char* base, std::size_t piece) {
  return {iovec{base, piece}, iovec{base + piece, piece}, iovec{base + 2 * piece, piece}};
}

// A mount may refuse to splice from a file that is open for writing too (EINVAL,
// fs_deviations.cpp). From such a file these do what programs then do, read and write, on both
// sides.
bool is_for_both(int fd) { return (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR; }

ssize_t splice_into_pipe(int from, loff_t at, int pipe, std::size_t size) {
  loff_t in = at;
  if (!is_for_both(from)) return splice(from, &in, pipe, nullptr, size, SPLICE_F_NONBLOCK);
  std::string bytes(std::min<std::size_t>(size, 65536), '\0');
  const ssize_t got = pread(from, bytes.data(), bytes.size(), at);
  return got <= 0 ? got : write(pipe, bytes.data(), static_cast<std::size_t>(got));
}

ssize_t send_file(int to, int from, off_t* at, std::size_t size) {
  if (!is_for_both(from)) return sendfile(to, from, at, size);
  std::string bytes(std::min<std::size_t>(size, 65536), '\0');
  const ssize_t got = at != nullptr ? pread(from, bytes.data(), bytes.size(), *at)
                                    : read(from, bytes.data(), bytes.size());
  return got <= 0 ? got : write(to, bytes.data(), static_cast<std::size_t>(got));
}

Outcome splice_range(int from, std::int64_t at, int to, std::int64_t to_at, std::size_t size) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return answer(-1);
  loff_t out_at = to_at;
  Outcome out = answer(splice_into_pipe(from, at, ends[1], size));
  if (out.ret > 0) {
    out = answer(splice(ends[0], nullptr, to, &out_at, static_cast<std::size_t>(out.ret), 0));
  }
  close(ends[0]);
  close(ends[1]);
  return out;
}

}  // namespace

Outcome Executor::run_data(const Op& op) {
  const std::size_t size = bounded(op.a);
  switch (op.call) {
    case Call::kRead: {
      auto into = buffer(size);
      Outcome out = answer(read(slot(op.fd), into.get(), size));
      if (out.ret > 0) out.data = digest(into.get(), static_cast<std::size_t>(out.ret));
      return out;
    }
    case Call::kPread: {
      auto into = buffer(size);
      Outcome out = answer(pread(slot(op.fd), into.get(), size, op.b));
      if (out.ret > 0) out.data = digest(into.get(), static_cast<std::size_t>(out.ret));
      return out;
    }
    case Call::kReadv: {
      auto into = buffer(3 * size);
      auto pieces = three(into.get(), size);
      Outcome out = answer(op.b < 0 ? readv(slot(op.fd), pieces.data(), 3)
                                    : preadv(slot(op.fd), pieces.data(), 3, op.b));
      if (out.ret > 0) out.data = digest(into.get(), static_cast<std::size_t>(out.ret));
      return out;
    }
    case Call::kWrite:
    case Call::kPwrite:
    case Call::kWritev:
      return run_write(op);
    case Call::kSeek: {
      const int fd = slot(op.fd);
      const off_t before = lseek(fd, 0, SEEK_CUR);
      Outcome out = answer(lseek(fd, op.a, static_cast<int>(op.b)));
      // Where holes are, where a directory ends and how far a file may reach can be told
      // differently; what follows must not depend on it.
      struct stat st {};
      const bool directory = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
      if (directory) out.data = "directory";
      if (directory || op.b == SEEK_DATA || op.b == SEEK_HOLE || out.ret > kFarOff) {
        lseek(fd, before, SEEK_SET);
      }
      return out;
    }
    case Call::kTruncate: {
      At where = first(op);
      return answer(truncate(where.c_str(), op.a));
    }
    case Call::kFtruncate:
      return answer(ftruncate(slot(op.fd), op.a));
    case Call::kAllocate:
      return answer(fallocate(slot(op.fd), static_cast<int>(op.c), op.a, op.b));
    case Call::kAdvise: {
      Outcome out;
      out.err = posix_fadvise(slot(op.fd), op.a, op.b, static_cast<int>(op.c));
      return out;
    }
    case Call::kCopyRange: {
      loff_t from = op.a;
      loff_t to = op.b;
      return answer(copy_file_range(slot(op.fd), op.a < 0 ? nullptr : &from, slot(op.fd2),
                                    op.b < 0 ? nullptr : &to, bounded(op.c), 0));
    }
    case Call::kSendfile: {
      off_t from = op.a;
      return answer(
          send_file(slot(op.fd2), slot(op.fd), op.a < 0 ? nullptr : &from, bounded(op.b)));
    }
    case Call::kSplice:
      return splice_range(slot(op.fd), op.a, slot(op.fd2), op.b, bounded(op.c));
    case Call::kFsync:
      return answer(op.a != 0 ? fdatasync(slot(op.fd)) : fsync(slot(op.fd)));
    default:
      return run_map(op);
  }
}

Outcome Executor::run_write(const Op& op) {
  const std::size_t size = bounded(op.a);
  const std::size_t total = op.call == Call::kWritev ? 3 * size : size;
  auto from = buffer(total);
  const std::string bytes = pattern(op.c, total);
  std::memcpy(from.get(), bytes.data(), total);
  if (sabotage_ == Sabotage::kFlipByte && total > 2) from.get()[total / 2] ^= 1;
  const int fd = slot(op.fd);
  switch (op.call) {
    case Call::kWrite:
      return answer(write(fd, from.get(), size));
    case Call::kPwrite:
      return answer(pwrite(fd, from.get(), size, op.b));
    default: {
      auto pieces = three(from.get(), size);
      return answer(op.b < 0 ? writev(fd, pieces.data(), 3) : pwritev(fd, pieces.data(), 3, op.b));
    }
  }
}

Outcome Executor::run_map(const Op& op) {
  Map& map = maps_.at(static_cast<std::size_t>(op.d));
  struct Touch {
    char* at;
    std::size_t size;
    std::string bytes;
  };
  switch (op.call) {
    case Call::kMap: {
      drop(map);
      const auto kind = static_cast<MapKind>(op.c);
      const bool writable = kind == MapKind::kSharedRw || kind == MapKind::kPrivateRw;
      int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
      if (kind == MapKind::kSharedExec) protection |= PROT_EXEC;
      void* got = mmap(nullptr, bounded(op.b), protection,
                       kind == MapKind::kPrivateRw ? MAP_PRIVATE : MAP_SHARED, slot(op.fd), op.a);
      if (got == MAP_FAILED) return answer(-1);
      map = {static_cast<char*>(got), bounded(op.b), writable,
             fcntl(slot(op.fd), F_DUPFD_CLOEXEC, 0)};
      return {};
    }
    case Call::kMapPeek: {
      const auto begin = bounded(op.a);
      if (map.at == nullptr || begin >= map.size) return {};
      const std::size_t size = std::min(bounded(op.b), map.size - begin);
      Touch touch{map.at + begin, size, std::string(size, '\0')};
      const bool fine = without_sigbus(
          [](void* p) {
            auto* t = static_cast<Touch*>(p);
            std::memcpy(t->bytes.data(), t->at, t->size);
          },
          &touch);
      Outcome out;
      out.data = fine ? digest(touch.bytes.data(), size) : "SIGBUS";
      return out;
    }
    case Call::kMapPoke: {
      const auto begin = bounded(op.a);
      if (map.at == nullptr || begin >= map.size || !map.writable) return {};
      const std::size_t size = std::min(bounded(op.b), map.size - begin);
      Touch touch{map.at + begin, size, pattern(op.c, size)};
      const bool fine = without_sigbus(
          [](void* p) {
            auto* t = static_cast<Touch*>(p);
            std::memcpy(t->at, t->bytes.data(), t->size);
          },
          &touch);
      // What a descriptor sees before and after the store has been forced out.
      auto into = buffer(kPage * 4);
      const ssize_t before = pread(slot(op.fd), into.get(), kPage * 4, 0);
      const std::string seen =
          before > 0 ? digest(into.get(), static_cast<std::size_t>(before)) : "";
      Outcome out = answer(msync(map.at, map.size, MS_SYNC));
      const ssize_t after = pread(slot(op.fd), into.get(), kPage * 4, 0);
      out.data = (fine ? "stored " : "SIGBUS ") + std::to_string(before) + " " + seen + " / " +
                 std::to_string(after) + " " +
                 (after > 0 ? digest(into.get(), static_cast<std::size_t>(after)) : "");
      return out;
    }
    default:
      drop(map);
      return {};
  }
}

void Executor::drop(Map& map) {
  if (map.at != nullptr) munmap(map.at, map.size);
  if (map.open >= 0) close(map.open);
  map = {};
}

}  // namespace latchfs::fsdiff
