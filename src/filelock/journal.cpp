#include "filelock/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/fault_point.h"
#include "posix/sys.h"

namespace latchfs::filelock {
namespace {

using posix::done;

constexpr std::string_view kOps = "ATDR";  // in Op's order
constexpr std::size_t kCommittedAt = 4;    // "1 R 0 …"
constexpr std::size_t kMostEntry = 4096;
constexpr auto kPause = std::chrono::milliseconds{3};

template <class Number>
bool parse_hex(std::string_view text, Number& number) {
  const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  return !text.empty() && err == std::errc{} && end == text.data() + text.size();
}

std::string handle_text(const posix::FileHandle& handle) {
  return handle.empty() ? "-" : handle.text();
}

std::optional<posix::FileHandle> parse_handle(std::string_view text) {
  if (text == "-") return posix::FileHandle{};
  return posix::FileHandle::parse(text);
}

std::optional<std::string> parse_name(std::string_view hex) {
  std::string name;
  if (hex.size() % 2 != 0) return std::nullopt;
  for (std::size_t at = 0; at < hex.size(); at += 2) {
    unsigned char byte = 0;
    if (!parse_hex(hex.substr(at, 2), byte)) return std::nullopt;
    name += static_cast<char>(byte);
  }
  if (!is_name(name)) return std::nullopt;
  return name;
}

}  // namespace

std::string journal_name(FileId file) { return fmt::format("{:x}-{:x}", file.dev, file.ino); }

bool is_journal_name(std::string_view name) {
  const auto dash = name.find('-');
  FileId id;
  return dash != std::string_view::npos && parse_hex(name.substr(0, dash), id.dev) &&
         parse_hex(name.substr(dash + 1), id.ino) && journal_name(id) == name;
}

std::string entry_text(const JournalEntry& entry) {
  std::string name;
  for (const char c : entry.name) name += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return fmt::format("1 {} {} {} {:x} {:x} {} {:x} {:x} {} {} end\n",
                     kOps[static_cast<std::size_t>(entry.op)], entry.committed ? 1 : 0,
                     entry.id.text(), entry.file.dev, entry.file.ino,
                     handle_text(entry.file_handle), entry.dir.dev, entry.dir.ino,
                     handle_text(entry.dir_handle), name);
}

std::optional<JournalEntry> parse_entry(std::string_view text) {
  std::array<std::string_view, 12> words;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto stop = text.find(i + 1 < words.size() ? ' ' : '\n');
    if (stop == std::string_view::npos) return std::nullopt;
    words[i] = text.substr(0, stop);
    text.remove_prefix(stop + 1);
  }
  if (words[0] != "1" || words[11] != "end" || !text.empty()) return std::nullopt;
  const auto op = kOps.find(words[1]);
  if (words[1].size() != 1 || op == std::string_view::npos) return std::nullopt;
  if (words[2] != "0" && words[2] != "1") return std::nullopt;
  JournalEntry entry;
  entry.op = static_cast<Op>(op);
  entry.committed = words[2] == "1";
  const auto id = LockId::parse(words[3]);
  const auto file_handle = parse_handle(words[6]);
  const auto dir_handle = parse_handle(words[9]);
  auto name = parse_name(words[10]);
  if (!id || !file_handle || !dir_handle || !name || !parse_hex(words[4], entry.file.dev) ||
      !parse_hex(words[5], entry.file.ino) || !parse_hex(words[7], entry.dir.dev) ||
      !parse_hex(words[8], entry.dir.ino)) {
    return std::nullopt;
  }
  entry.id = *id;
  entry.file_handle = *file_handle;
  entry.dir_handle = *dir_handle;
  entry.name = std::move(*name);
  return entry;
}

// False: it is held, or no longer what the name means. Errors: EWOULDBLOCK and ESTALE.
Result<bool> Journal::lock(int state, const std::string& name, int fd) {
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return last_errno();
  struct stat mine {};
  struct stat named {};
  if (::fstat(fd, &mine) != 0) return last_errno();
  if (!S_ISREG(mine.st_mode) || mine.st_uid != ::geteuid()) return errno_code(EPERM);
  // Whoever had it before may have removed it while we waited.
  if (mine.st_nlink == 0 || ::fstatat(state, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) != 0 ||
      posix::file_id(mine) != posix::file_id(named)) {
    return false;
  }
  return true;
}

Result<Journal> Journal::take(const StateDir& state, FileId file, std::int64_t deadline_ns) {
  const std::string name = journal_name(file);
  for (;;) {
    UniqueFd fd{::openat(state->get(), name.c_str(),
                         O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
                         S_IRUSR | S_IWUSR)};
    if (!fd) return last_errno();
    for (;;) {
      const auto have = lock(state->get(), name, fd.get());
      if (have && *have) return Journal{state, std::move(fd), name};
      if (have) break;  // another file has the name
      if (have.error() != errno_code(EWOULDBLOCK) && have.error() != errno_code(EINTR)) {
        return have.error();
      }
      if (monotonic_ns() >= deadline_ns) return errno_code(EBUSY);
      std::this_thread::sleep_for(kPause);
    }
  }
}

Result<Journal> Journal::take_left(const StateDir& state, const std::string& name) {
  UniqueFd fd{::openat(state->get(), name.c_str(),
                       O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
  if (!fd) return last_errno();
  const auto have = lock(state->get(), name, fd.get());
  if (!have) return have.error() == errno_code(EWOULDBLOCK) ? errno_code(EBUSY) : have.error();
  if (!*have) return errno_code(ENOENT);
  return Journal{state, std::move(fd), name};
}

Journal::~Journal() {
  if (!fd_) return;
  struct stat st {};
  if (::fstat(fd_.get(), &st) == 0 && st.st_size == 0) ::unlinkat(state_->get(), name_.c_str(), 0);
}

Result<std::optional<JournalEntry>> Journal::read() const {
  std::array<char, kMostEntry> text;
  const ssize_t size = ::pread(fd_.get(), text.data(), text.size(), 0);
  if (size < 0) return last_errno();
  return parse_entry({text.data(), static_cast<std::size_t>(size)});
}

Result<void> Journal::write(const JournalEntry& entry, bool durable) {
  const std::string text = entry_text(entry);
  if (auto r = clear(); !r) return r;
  fault_point("filelock.journal.write");
  const ssize_t n = ::pwrite(fd_.get(), text.data(), text.size(), 0);
  if (n != static_cast<ssize_t>(text.size())) {
    const auto error = n < 0 ? last_errno() : errno_code(ENOSPC);
    (void)clear();
    return error;
  }
  if (!durable) return {};
  fault_point("filelock.journal.sync");
  if (auto r = done(::fdatasync(fd_.get())); !r) return r;
  const UniqueFd dir{::openat(state_->get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!dir) return last_errno();
  return done(::fsync(dir.get()));
}

Result<void> Journal::commit() {
  if (::pwrite(fd_.get(), "1", 1, kCommittedAt) != 1) return last_errno();
  return done(::fdatasync(fd_.get()));
}

Result<void> Journal::clear() { return done(::ftruncate(fd_.get(), 0)); }

}  // namespace latchfs::filelock
