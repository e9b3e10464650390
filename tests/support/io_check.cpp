#include "support/io_check.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <random>

namespace latchfs::test {
namespace {

constexpr std::size_t kMostBytes = 300'000;
constexpr std::size_t kSlots = 6;
constexpr std::size_t kAlignment = 4096;  // of O_DIRECT

struct Mapping {
  char* at{};
  std::size_t size{};
  bool writable{};
};

struct Slot {
  int fd{-1};
  std::size_t place{};
  int flags{};
  [[nodiscard]] bool readable() const { return (flags & O_ACCMODE) != O_WRONLY; }
  [[nodiscard]] bool writable() const { return (flags & O_ACCMODE) != O_RDONLY; }
};

struct AlignedDelete {
  void operator()(char* p) const { std::free(p); }
};
using Aligned = std::unique_ptr<char, AlignedDelete>;
Aligned aligned(std::size_t size) {
  const std::size_t whole = (size + kAlignment - 1) / kAlignment * kAlignment + kAlignment;
  return Aligned{static_cast<char*>(std::aligned_alloc(kAlignment, whole))};
}

class Run {
 public:
  Run(const IoCheck& check, std::uint64_t seed)
      : check_{check}, name_{"/io-check-" + std::to_string(seed)}, random_{seed} {}
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run() {
    for (Mapping& m : maps_) ::munmap(m.at, m.size);
    for (Slot& slot : slots_) {
      if (slot.fd >= 0) ::close(slot.fd);
    }
    if (out_ >= 0) ::close(out_);
    if (native_ >= 0) ::close(native_);
    ::unlink((check_.places[0] + name_).c_str());
  }

  std::optional<std::string> all() {
    native_ =
        ::open((check_.places[0] + name_).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (native_ < 0) return "cannot make the file: " + error();
    out_ = ::memfd_create("io-check", MFD_CLOEXEC);
    for (std::size_t i = 0; i < kSlots; ++i) reopen(i);
    for (std::size_t n = 0; n < check_.steps && wrong_.empty(); ++n) step();
    if (wrong_.empty()) for_all_places();
    if (wrong_.empty()) return std::nullopt;
    std::string text = wrong_ + "; the last steps:\n";
    for (const std::string& line : last_) text += "  " + line + "\n";
    return text;
  }

 private:
  static std::string error() { return std::strerror(errno); }
  std::size_t below(std::size_t n) {
    return std::uniform_int_distribution<std::size_t>{0, n - 1}(random_);
  }
  bool chance(std::size_t percent) { return below(100) < percent; }
  void fail(const std::string& what) {
    if (wrong_.empty()) wrong_ = what;
  }
  template <class... Args>
  void note(fmt::format_string<Args...> format, Args&&... args) {
    last_.push_back(fmt::format(format, std::forward<Args>(args)...));
    if (last_.size() > 25) last_.pop_front();
  }

  // Page borders, the end and small pieces are where the bugs are.
  std::size_t offset(std::size_t most) {
    if (most == 0) return 0;
    switch (below(5)) {
      case 0:
        return below(most);
      case 1:
        return std::min(most - 1, below(most / 4096 + 1) * 4096);
      case 2:
        return std::min(most - 1, below(most / 4096 + 1) * 4096 + below(3));
      case 3:
        return most - 1 - std::min(most - 1, below(5000));
      default:
        return below(std::min<std::size_t>(most, 20'000));
    }
  }
  std::size_t length() {
    switch (below(6)) {
      case 0:
        return 1 + below(10);
      case 1:
        return 4096;
      case 2:
        return 1 + below(140'000);
      default:
        return 1 + below(9'000);
    }
  }
  std::string fresh_bytes(std::size_t size) {
    std::string bytes(size, '\0');
    const char first = static_cast<char>('A' + below(26));
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(first + (i + size) % 30);
    return bytes;
  }

  void reopen(std::size_t i) {
    constexpr std::array<int, 8> kFlags{O_RDONLY,
                                        O_RDONLY,
                                        O_RDWR,
                                        O_RDWR,
                                        O_RDWR | O_APPEND,
                                        O_RDWR | O_DIRECT,
                                        O_RDONLY | O_DIRECT,
                                        O_WRONLY | O_DSYNC};
    Slot& slot = slots_[i];
    if (slot.fd >= 0) ::close(slot.fd);
    slot.place = below(check_.places.size());
    slot.flags = kFlags[below(kFlags.size())];
    slot.fd = ::open((check_.places[slot.place] + name_).c_str(), slot.flags | O_CLOEXEC);
    note("open {}: place {} flags {:o}", i, slot.place, slot.flags);
    if (slot.fd < 0) fail("open: " + error());
  }

  Slot* pick(bool write) {
    for (int tries = 0; tries < 20; ++tries) {
      Slot& slot = slots_[below(kSlots)];
      if (write ? slot.writable() : slot.readable()) return &slot;
    }
    return nullptr;
  }
  std::size_t index(const Slot& slot) const {
    return static_cast<std::size_t>(&slot - slots_.data());
  }

  // The model.
  void put(std::size_t at, std::string_view bytes) {
    before_ = model_;
    if (model_.size() < at + bytes.size()) model_.resize(at + bytes.size());
    model_.replace(at, bytes.size(), bytes);
  }
  void resize(std::size_t size) {
    before_ = model_;
    model_.resize(size);
  }
  void compare(std::string_view got, std::size_t at, const std::string& by) {
    const std::string_view want =
        at >= model_.size() ? std::string_view{} : std::string_view{model_}.substr(at, got.size());
    if (got.size() != want.size()) {
      return fail(fmt::format("{}: {} bytes at {}, not {}", by, got.size(), at, want.size()));
    }
    const auto [a, b] = std::mismatch(got.begin(), got.end(), want.begin());
    if (a != got.end()) {
      fail(fmt::format("{}: byte {} is {:#x}, not {:#x} (file of {})", by,
                       at + static_cast<std::size_t>(a - got.begin()),
                       static_cast<unsigned char>(*a), static_cast<unsigned char>(*b),
                       model_.size()));
    }
  }

  void do_read() {
    Slot* slot = pick(false);
    if (slot == nullptr) return;
    std::size_t at = offset(model_.size() + 5000), size = length();
    if ((slot->flags & O_DIRECT) != 0) {
      at = at / kAlignment * kAlignment;
      size = (size + kAlignment - 1) / kAlignment * kAlignment;
    }
    const Aligned buffer = aligned(size);
    note("read {}: {} + {}", index(*slot), at, size);
    const ssize_t got = ::pread(slot->fd, buffer.get(), size, static_cast<off_t>(at));
    if (got < 0) return fail("read: " + error());
    if (check_.planted == Planted::kStaleRead && chance(5) && before_.size() == model_.size() &&
        at < before_.size()) {
      std::memcpy(buffer.get(), before_.data() + at, static_cast<std::size_t>(got));
    }
    const std::size_t want = at >= model_.size() ? 0 : std::min(size, model_.size() - at);
    if (static_cast<std::size_t>(got) != want) {
      return fail(fmt::format("read gave {} bytes, not {} (file of {})", got, want, model_.size()));
    }
    compare({buffer.get(), static_cast<std::size_t>(got)}, at, "read");
  }

  void do_write() {
    Slot* slot = pick(true);
    if (slot == nullptr) return;
    std::size_t at = offset(std::min(model_.size() + 10'000, kMostBytes)), size = length();
    if ((slot->flags & O_DIRECT) != 0) {
      at = at / kAlignment * kAlignment;
      size = (size + kAlignment - 1) / kAlignment * kAlignment;
    }
    if ((slot->flags & O_APPEND) != 0) {
      if (model_.size() > kMostBytes) return;
      at = model_.size();
    }
    const std::string bytes = fresh_bytes(size);
    const Aligned buffer = aligned(size);
    std::memcpy(buffer.get(), bytes.data(), size);
    std::size_t real_at = at;
    if (check_.planted == Planted::kWrongOffset && (slot->flags & O_APPEND) != 0 && at > 7) {
      real_at = at - 7;
    }
    note("write {}: {} + {}", index(*slot), at, size);
    const std::string tail = at + size - 1 < model_.size() ? model_.substr(at + size - 1, 1) : "";
    ssize_t put_bytes{};
    if (real_at != at) {
      put_bytes = ::pwrite(native_, buffer.get(), size, static_cast<off_t>(real_at));
    } else if (chance(20)) {
      iovec parts[2]{{buffer.get(), size / 2}, {buffer.get() + size / 2, size - size / 2}};
      const bool whole = (slot->flags & O_DIRECT) != 0;
      if (whole) parts[0] = {buffer.get(), size};
      put_bytes = ::pwritev2(slot->fd, parts, whole ? 1 : 2, static_cast<off_t>(at), RWF_DSYNC);
    } else {
      put_bytes = ::pwrite(slot->fd, buffer.get(), size, static_cast<off_t>(at));
    }
    if (put_bytes != static_cast<ssize_t>(size)) return fail("write: " + error());
    put(at, bytes);
    if (check_.planted == Planted::kLostByte && !tail.empty() && chance(5)) {
      (void)!::pwrite(native_, tail.data(), 1, static_cast<off_t>(at + size - 1));
    }
  }

  void do_truncate() {
    const std::size_t size = offset(kMostBytes);
    Slot* slot = pick(true);
    int done{};
    if (slot != nullptr && chance(70)) {
      note("ftruncate {}: {}", index(*slot), size);
      done = ::ftruncate(slot->fd, static_cast<off_t>(size));
    } else {
      const std::size_t place = below(check_.places.size());
      note("truncate by place {}: {}", place, size);
      done = ::truncate((check_.places[place] + name_).c_str(), static_cast<off_t>(size));
    }
    if (done != 0) return fail("truncate: " + error());
    if (check_.planted == Planted::kDirtyTail && size > model_.size() && !model_.empty()) {
      (void)!::pwrite(native_, "x", 1, static_cast<off_t>(model_.size()));
    }
    resize(size);
  }

  void do_allocate() {
    Slot* slot = pick(true);
    if (slot == nullptr) return;
    const std::size_t at = offset(kMostBytes), size = std::min(length(), kMostBytes - at);
    if (size == 0) return;
    const std::size_t kind = below(3);
    constexpr std::array<int, 3> kModes{0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                        FALLOC_FL_ZERO_RANGE};
    note("fallocate {}: mode {} {} + {}", index(*slot), kModes[kind], at, size);
    if (::fallocate(slot->fd, kModes[kind], static_cast<off_t>(at), static_cast<off_t>(size)) !=
        0) {
      if (errno == EOPNOTSUPP) return;
      return fail("fallocate: " + error());
    }
    before_ = model_;
    if (kind != 1 && model_.size() < at + size) model_.resize(at + size);
    if (kind != 0 && at < model_.size()) {
      const std::size_t zeros = std::min(size, model_.size() - at);
      model_.replace(at, zeros, zeros, '\0');
    }
  }

  void do_copy() {
    Slot* from = pick(false);
    Slot* to = pick(true);
    if (from == nullptr || to == nullptr || model_.size() < 100) return;
    // O_APPEND is EBADF, and between two file systems natively EXDEV or a copy by pages.
    if ((to->flags & O_APPEND) != 0 || from->place != to->place) return;
    const std::size_t size = 1 + below(std::min<std::size_t>(model_.size() / 3, 50'000));
    const std::size_t in = below(model_.size() / 3), out = model_.size() / 3 + size + below(5000);
    if (in + size > out) return;
    auto in_at = static_cast<off_t>(in), out_at = static_cast<off_t>(out);
    note("copy_file_range {} -> {}: {} + {} to {}", index(*from), index(*to), in, size, out);
    const ssize_t got = ::copy_file_range(from->fd, &in_at, to->fd, &out_at, size, 0);
    if (got < 0) {
      if (errno == EINVAL && ((from->flags | to->flags) & O_DIRECT) != 0) return;
      if (errno == EINVAL && check_.may_refuse_sendfile && from->writable()) return;
      return fail("copy_file_range: " + error());
    }
    if (got > 0) put(out, model_.substr(in, static_cast<std::size_t>(got)));
  }

  void do_sendfile() {
    Slot* slot = pick(false);
    if (slot == nullptr || (slot->flags & O_DIRECT) != 0 || model_.empty()) return;
    struct stat st {};
    // Where pages of the mount are used, another place may have moved the end, and splice does not
    // ask (docs/compatibility.md).
    const bool passed = check_.may_refuse_sendfile && !slot->writable();
    if (!passed && ::fstat(slot->fd, &st) != 0) return fail("fstat: " + error());
    const std::size_t at = offset(model_.size());
    const std::size_t size = std::min(length(), model_.size() - at);
    auto from = static_cast<off_t>(at);
    (void)::ftruncate(out_, 0);
    ::lseek(out_, 0, SEEK_SET);
    note("sendfile {}: {} + {}", index(*slot), at, size);
    std::size_t sum = 0;
    while (sum < size) {
      const ssize_t got = ::sendfile(out_, slot->fd, &from, size - sum);
      if (got < 0 && errno == EINVAL && check_.may_refuse_sendfile && slot->writable()) return;
      if (got <= 0) return fail(fmt::format("sendfile: {} {}", got, error()));
      sum += static_cast<std::size_t>(got);
    }
    std::string bytes(size, '\0');
    if (::pread(out_, bytes.data(), size, 0) != static_cast<ssize_t>(size)) return fail("memfd");
    compare(bytes, at, "sendfile");
  }

  void do_sizes() {
    const std::size_t place = below(check_.places.size());
    struct stat st {};
    note("stat by place {}", place);
    if (::stat((check_.places[place] + name_).c_str(), &st) != 0) return fail("stat: " + error());
    if (static_cast<std::size_t>(st.st_size) != model_.size()) {
      return fail(fmt::format("stat says {} bytes, not {}", st.st_size, model_.size()));
    }
    const Slot& slot = slots_[below(kSlots)];
    const off_t end = ::lseek(slot.fd, 0, SEEK_END);
    if (end < 0 || static_cast<std::size_t>(end) != model_.size()) {
      fail(fmt::format("lseek says {} bytes, not {}", end, model_.size()));
    }
  }

  // Mappings stay when their descriptor is closed.
  void do_map() {
    if (model_.empty()) return;
    const Slot* slot = pick(false);
    if (slot == nullptr || (slot->flags & O_DIRECT) != 0) return;
    if (maps_.size() >= 4) {
      const std::size_t i = below(maps_.size());
      ::munmap(maps_[i].at, maps_[i].size);
      maps_.erase(maps_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    const bool write = slot->writable();
    Mapping m{nullptr, model_.size(), write};
    void* at = ::mmap(nullptr, m.size, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                      slot->fd, 0);
    note("map {}: {}", index(*slot), m.size);
    if (at == MAP_FAILED) return fail("mmap: " + error());
    m.at = static_cast<char*>(at);
    maps_.push_back(m);
  }
  void do_mapped() {
    if (maps_.empty() || model_.empty()) return;
    const Mapping& m = maps_[below(maps_.size())];
    const std::size_t most = std::min(m.size, model_.size());
    const std::size_t at = offset(most);
    const std::size_t size = std::min(length(), most - at);
    if (!m.writable || chance(50)) {
      note("load from mapping of {}: {} + {}", m.size, at, size);
      compare(std::string{m.at + at, size}, at, "mapping");
      return;
    }
    const std::string bytes = fresh_bytes(size);
    note("store into mapping of {}: {} + {}", m.size, at, size);
    if (check_.planted != Planted::kStaleMap || chance(90)) {
      std::memcpy(m.at + at, bytes.data(), size);
      if (chance(30)) ::msync(m.at, m.size, MS_SYNC);
    }
    put(at, bytes);
  }

  void step() {
    const std::size_t what = below(100);
    if (what < 28) return do_read();
    if (what < 52) return do_write();
    if (what < 58) return do_truncate();
    if (what < 64) return do_allocate();
    if (what < 68) return do_copy();
    if (what < 74) return do_sendfile();
    if (what < 80) return do_sizes();
    if (what < 84) return reopen(below(kSlots));
    if (!check_.mappings) return do_read();
    if (what < 88) return do_map();
    do_mapped();
  }

  void for_all_places() {
    for (const std::string& place : check_.places) {
      const int fd = ::open((place + name_).c_str(), O_RDONLY | O_CLOEXEC);
      std::string all(model_.size() + 1, '\0');
      std::size_t sum = 0;
      for (ssize_t got = 1; got > 0 && sum < all.size(); sum += static_cast<std::size_t>(got)) {
        got = ::pread(fd, all.data() + sum, all.size() - sum, static_cast<off_t>(sum));
        if (got < 0) fail("read at the end: " + error());
        if (got <= 0) break;
      }
      ::close(fd);
      all.resize(sum);
      if (all.size() != model_.size()) fail("at the end another size");
      compare(all, 0, "at the end, " + place);
    }
  }

  const IoCheck& check_;
  const std::string name_;
  std::mt19937_64 random_;
  std::string model_;
  std::string before_;  // the last change
  std::array<Slot, kSlots> slots_;
  std::vector<Mapping> maps_;
  std::deque<std::string> last_;
  std::string wrong_;
  int native_{-1};
  int out_{-1};
};

}  // namespace

std::optional<std::string> run_io_check(const IoCheck& check, std::uint64_t seed) {
  Run run{check, seed};
  return run.all();
}

}  // namespace latchfs::test
