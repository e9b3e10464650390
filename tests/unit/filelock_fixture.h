// A directory on a file system of the test's choice, a state directory, and what is in them as
// text.
//
// Mounts are in a mount namespace of the program's own: they end with it however it ends. Needs
// root.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "base/clock.h"
#include "filelock/desk.h"
#include "posix/sys.h"

namespace latchfs::filelock {

// Where: "default" (of TMPDIR), "tmpfs", images on loop devices: "xfs" (shares blocks), "ext4"
// (half of it reserved for root).
class FilelockTest : public testing::Test {
 protected:
  virtual std::string where() const { return "default"; }
  // Of a tmpfs.
  virtual std::string size() const { return "64m"; }

  void SetUp() override {
    ASSERT_EQ(::geteuid(), 0u) << "these tests need root";
    own_namespace();
    const char* base = std::getenv("TMPDIR");
    base_ = std::string{base != nullptr ? base : "/tmp"} + "/latchfs-filelock-XXXXXX";
    ASSERT_NE(::mkdtemp(base_.data()), nullptr);
    ASSERT_EQ(::mkdir(path("").c_str(), 0755), 0);
    if (where() == "tmpfs") {
      ASSERT_EQ(::mount("tmpfs", path("").c_str(), "tmpfs", 0, ("size=" + size()).c_str()), 0);
      mounted_ = true;
    } else if (where() == "xfs") {
      const std::string image = base_ + "/image";
      if (!run("mkfs.xfs -V"))
        GTEST_SKIP() << "no mkfs.xfs here: blocks are not shared in any test";
      ASSERT_TRUE(run("truncate -s 320M " + image + " && mkfs.xfs -q -m reflink=1 " + image));
      if (!run("mount -o loop " + image + " " + path("")))
        GTEST_SKIP() << "no loop mount of xfs here";
      mounted_ = true;
    } else if (where() == "ext4") {
      const std::string image = base_ + "/image";
      ASSERT_TRUE(run("truncate -s 16M " + image + " && mkfs.ext4 -q -m 50 " + image));
      if (!run("mount -o loop " + image + " " + path(""))) GTEST_SKIP() << "no loop devices here";
      mounted_ = true;
    }
    ASSERT_EQ(::chmod(path("").c_str(), 0755), 0);
    dir_.reset(::open(path("").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(dir_);
  }
  void TearDown() override {
    dir_.reset();
    if (mounted_) {
      EXPECT_EQ(::umount2(path("").c_str(), MNT_DETACH), 0);
    }
    if (!base_.empty()) std::filesystem::remove_all(base_);
  }

  static bool run(const std::string& command) {
    return std::system(("(" + command + ") >/dev/null 2>&1").c_str()) == 0;
  }
  [[nodiscard]] std::string path(const std::string& name) const { return base_ + "/fs/" + name; }
  [[nodiscard]] std::string state_path() const { return base_ + "/state"; }
  [[nodiscard]] int dir() const { return dir_.get(); }
  [[nodiscard]] static Caller me() { return {0, 0, ::getpid(), 022}; }
  [[nodiscard]] static LockInfo info(const std::string& tags = R"({"ticket":"42"})") {
    return {"alice", 1000, "/f", tags};
  }

  [[nodiscard]] UniqueFd path_fd(const std::string& name) const {
    return UniqueFd{::open(path(name).c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)};
  }
  void write_file(const std::string& name, const std::string& content, mode_t mode = 0644) {
    const UniqueFd fd{::open(path(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    ASSERT_TRUE(fd) << name;
    ASSERT_EQ(::pwrite(fd.get(), content.data(), content.size(), 0),
              static_cast<ssize_t>(content.size()));
    ASSERT_EQ(::fchmod(fd.get(), mode), 0);
  }
  void write_at(const std::string& name, off_t at, const std::string& content) {
    const UniqueFd fd{::open(path(name).c_str(), O_WRONLY | O_CLOEXEC)};
    ASSERT_TRUE(fd);
    ASSERT_EQ(::pwrite(fd.get(), content.data(), content.size(), at),
              static_cast<ssize_t>(content.size()));
  }

  // Data, a hole, data, a hole at the end; another's, set-user-ID, attributes, an ACL, old times.
  void make_rich(const std::string& name) {
    write_file(name, std::string(100'000, 'a'));
    write_at(name, 3 << 20, std::string(5'000, 'b'));
    ASSERT_EQ(::truncate(path(name).c_str(), (5 << 20) + 123), 0);
    ASSERT_EQ(::chown(path(name).c_str(), 1000, 1001), 0);
    set_attribute(name, "user.color", "blue");
    set_attribute(name, "trusted.secret", std::string("\0x", 2));
    set_attribute(name, "system.posix_acl_access", acl());
    ASSERT_EQ(::chmod(path(name).c_str(), 04754), 0);
    const struct timespec times[2] = {{1'000'000'001, 123'456'789}, {1'100'000'002, 987'654'321}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path(name).c_str(), times, 0), 0);
    ::sync_file_range(UniqueFd{::open(path(name).c_str(), O_RDONLY)}.get(), 0, 0, 7);
  }
  // What a locking user may do meanwhile.
  void spoil(const std::string& name) {
    write_at(name, 1 << 20, std::string(70'000, 'X'));
    write_at(name, 10, "YYYY");
    ASSERT_EQ(::truncate(path(name).c_str(), (6 << 20) + 7), 0);
    ASSERT_EQ(::removexattr(path(name).c_str(), "user.color"), 0);
    set_attribute(name, "user.other", "1");
    ASSERT_EQ(::removexattr(path(name).c_str(), "system.posix_acl_access"), 0);
    ASSERT_EQ(::chmod(path(name).c_str(), 0600), 0);
  }
  void set_attribute(const std::string& name, const char* attribute, const std::string& value) {
    ASSERT_EQ(::lsetxattr(path(name).c_str(), attribute, value.data(), value.size(), 0), 0)
        << attribute;
  }
  // user::rwx user:1002:r-x group::r-x mask::r-x other::r--
  static std::string acl() {
    std::string text("\2\0\0\0", 4);
    const auto entry = [&](char tag, char perm, std::uint32_t id) {
      text += {tag, 0, perm, 0};
      for (int i = 0; i < 4; ++i) text += static_cast<char>((id >> (8 * i)) & 0xff);
    };
    entry(1, 7, 0xffffffff);
    entry(2, 5, 1002);
    entry(4, 5, 0xffffffff);
    entry(16, 5, 0xffffffff);
    entry(32, 4, 0xffffffff);
    return text;
  }

  // All there is to see of a file, but its inode number, ctime and marks.
  [[nodiscard]] std::string seen(const std::string& name) const {
    struct stat st {};
    if (::lstat(path(name).c_str(), &st) != 0) return "missing";
    std::string text = fmt::format("mode {:o} owner {}:{} size {} atime {}.{} mtime {}.{}",
                                   st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_atim.tv_sec,
                                   st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    if (!S_ISREG(st.st_mode)) return text;
    const UniqueFd fd{::open(path(name).c_str(), O_RDONLY | O_NOATIME | O_CLOEXEC)};
    char list[4096];
    const ssize_t size = ::flistxattr(fd.get(), list, sizeof list);
    std::set<std::string> names;
    for (ssize_t at = 0; at < size; at += static_cast<ssize_t>(std::string{list + at}.size()) + 1) {
      if (!is_mark_name(list + at)) names.insert(list + at);
    }
    for (const std::string& attribute : names) {
      char value[4096];
      const ssize_t n = ::fgetxattr(fd.get(), attribute.c_str(), value, sizeof value);
      text +=
          fmt::format(" {}={}", attribute, log::printable({value, static_cast<std::size_t>(n)}));
    }
    for (off_t at = 0; at < st.st_size;) {
      const off_t data = ::lseek(fd.get(), at, SEEK_DATA);
      if (data < 0) break;
      at = ::lseek(fd.get(), data, SEEK_HOLE);
      // What is allocated at the end of data is up to the file system and the hour.
      constexpr off_t kGrain = 65536;
      text += fmt::format(" data {}-{}", data, (at + kGrain - 1) / kGrain * kGrain);
    }
    std::string content(static_cast<std::size_t>(st.st_size), '\0');
    EXPECT_EQ(::pread(fd.get(), content.data(), content.size(), 0), st.st_size);
    return text + fmt::format(" content {:x}", std::hash<std::string>{}(content));
  }
  [[nodiscard]] std::string content(const std::string& name) const {
    const UniqueFd fd{::open(path(name).c_str(), O_RDONLY | O_NOATIME | O_CLOEXEC)};
    std::string text(1 << 20, '\0');
    const ssize_t n = ::read(fd.get(), text.data(), text.size());
    text.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
    return text;
  }
  [[nodiscard]] static std::set<std::string> names_in(const std::string& where) {
    std::set<std::string> names;
    if (!std::filesystem::exists(where)) return names;
    for (const auto& entry : std::filesystem::directory_iterator{where}) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }
  [[nodiscard]] std::set<std::string> names() const { return names_in(path("")); }
  [[nodiscard]] std::set<std::string> journals() const { return names_in(state_path()); }

  [[nodiscard]] Desk desk() const {
    auto desk = Desk::open(state_path());
    EXPECT_TRUE(desk) << desk.failure().words;
    return std::move(*desk);
  }
  [[nodiscard]] static std::int64_t in_ms(std::int64_t ms) {
    return monotonic_ns() + ms * 1'000'000;
  }
  // A request from begin to end.
  template <class Fn>
  Failure with_session(const std::string& name, Fn&& fn) const {
    const UniqueFd file = path_fd(name);
    auto session = desk().begin({dir(), name, file.get()}, in_ms(2000));
    if (!session) return session.failure();
    const auto outcome = fn(*session);
    return outcome ? Failure{} : outcome.failure();
  }
  Failure apply(const std::string& name, const LockInfo& with = info(),
                const Caller& as = me()) const {
    return with_session(name, [&](Session& s) { return s.apply(with, as); });
  }
  Failure retag(const std::string& name, const LockInfo& with) const {
    return with_session(name, [&](Session& s) { return s.retag(with); });
  }
  Failure remove(const std::string& name) const {
    return with_session(name, [](Session& s) { return s.remove(); });
  }
  Failure revert(const std::string& name) const {
    return with_session(name, [](Session& s) { return s.revert_and_remove(me()); });
  }
  [[nodiscard]] Status status(const std::string& name) const {
    const UniqueFd file = path_fd(name);
    auto status = status_of({dir(), name, file.get()});
    EXPECT_TRUE(status) << status.failure().words;
    return status ? std::move(*status) : Status{};
  }
  [[nodiscard]] std::optional<Mark> mark(const std::string& name) const {
    const auto mark = read_mark(path_fd(name).get());
    EXPECT_TRUE(mark) << mark.error().message();
    return mark ? *mark : std::nullopt;
  }

 private:
  static void own_namespace() {
    static const bool done = [] {
      return ::unshare(CLONE_NEWNS) == 0 &&
             ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    }();
    ASSERT_TRUE(done) << "no mount namespace of one's own";
  }

  std::string base_;
  UniqueFd dir_;
  bool mounted_{};
};

#define EXPECT_DONE(expression)                                       \
  do {                                                                \
    const Failure result = (expression);                              \
    EXPECT_FALSE(result.code) << #expression << ": " << result.words; \
  } while (false)
#define EXPECT_REFUSED(expression, err)                                             \
  do {                                                                              \
    const Failure result = (expression);                                            \
    EXPECT_EQ(result.code, errno_code(err)) << #expression << ": " << result.words; \
    EXPECT_FALSE(result.words.empty());                                             \
  } while (false)

// The same tests on several file systems.
class FilelockGroundTest : public FilelockTest, public testing::WithParamInterface<const char*> {
 protected:
  std::string where() const override { return GetParam(); }
};

}  // namespace latchfs::filelock
