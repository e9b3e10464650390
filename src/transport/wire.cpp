#include "transport/wire.h"

#include <linux/fuse.h>

#include <cmath>
#include <cstring>

namespace latchfs::transport::wire {
namespace {

struct OpenOut {
  std::uint64_t fh;
  std::uint32_t open_flags;
  std::int32_t backing_id;
};
static_assert(sizeof(OpenOut) == sizeof(OpenAnswer));
static_assert(sizeof(fuse_entry_out) + sizeof(OpenOut) == sizeof(CreateAnswer));

std::uint64_t whole_seconds(double t) { return t <= 0 ? 0 : static_cast<std::uint64_t>(t); }
std::uint32_t nanoseconds(double t) {
  return t <= 0 ? 0 : static_cast<std::uint32_t>((t - std::floor(t)) * 1e9);
}

fuse_attr attributes(const struct stat& st) {
  fuse_attr attr{};
  attr.ino = st.st_ino;
  attr.size = static_cast<std::uint64_t>(st.st_size);
  attr.blocks = static_cast<std::uint64_t>(st.st_blocks);
  attr.atime = static_cast<std::uint64_t>(st.st_atim.tv_sec);
  attr.mtime = static_cast<std::uint64_t>(st.st_mtim.tv_sec);
  attr.ctime = static_cast<std::uint64_t>(st.st_ctim.tv_sec);
  attr.atimensec = static_cast<std::uint32_t>(st.st_atim.tv_nsec);
  attr.mtimensec = static_cast<std::uint32_t>(st.st_mtim.tv_nsec);
  attr.ctimensec = static_cast<std::uint32_t>(st.st_ctim.tv_nsec);
  attr.mode = st.st_mode;
  attr.nlink = static_cast<std::uint32_t>(st.st_nlink);
  attr.uid = st.st_uid;
  attr.gid = st.st_gid;
  attr.blksize = static_cast<std::uint32_t>(st.st_blksize);
  return attr;
}

}  // namespace

OpenAnswer open_answer(std::uint64_t fh, const OpenWay& way) noexcept {
  const OpenOut out{fh, way.flags, way.backing_id};
  OpenAnswer answer;
  std::memcpy(answer.data(), &out, sizeof out);
  return answer;
}

CreateAnswer create_answer(const fuse_entry_param& entry, std::uint64_t fh,
                           const OpenWay& way) noexcept {
  fuse_entry_out out{};
  out.nodeid = entry.ino;
  out.generation = entry.generation;
  out.entry_valid = whole_seconds(entry.entry_timeout);
  out.entry_valid_nsec = nanoseconds(entry.entry_timeout);
  out.attr_valid = whole_seconds(entry.attr_timeout);
  out.attr_valid_nsec = nanoseconds(entry.attr_timeout);
  out.attr = attributes(entry.attr);
  const OpenAnswer open = open_answer(fh, way);
  CreateAnswer answer;
  std::memcpy(answer.data(), &out, sizeof out);
  std::memcpy(answer.data() + sizeof out, open.data(), open.size());
  return answer;
}

}  // namespace latchfs::transport::wire
