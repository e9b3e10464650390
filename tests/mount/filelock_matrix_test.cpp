// Every system call that modifies a file, by the user who locked it, another one and an admin,
// through descriptors from before and after, by its name, another hard link and another mount: what
// each is to get, in one table. The same calls on files that are not locked all succeed, so that a
// refusal is the filelock's.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <vector>

#include "support/filelock_client.h"
#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

constexpr uid_t kLocker = 61001;
constexpr uid_t kOther = 61002;
constexpr std::size_t kSize = 32768;

int err_of(long result) { return result < 0 ? errno : 0; }

// What a call has to work with: an open descriptor (or why there is none) and a name.
struct Target {
  int fd{-1};
  int open_err{};
  std::string path;
  std::string spare;  // another file of the actor's in the same directory
};

struct Call {
  const char* name;
  int refused;  // what another user gets
  enum class By : std::uint8_t { kWriter, kReader, kName } by;
  std::function<int(const Target&)> run;
};

const std::string kAcl{
    "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff"
    "\x04\x00\x06\x00\xff\xff\xff\xff\x20\x00\x06\x00\xff\xff\xff\xff",
    28};

int copy_into(const Target& t) {
  const int from = ::open(t.spare.c_str(), O_RDONLY | O_CLOEXEC);
  loff_t at = 0;
  loff_t to = 0;
  const int err = err_of(::copy_file_range(from, &at, t.fd, &to, 100, 0));
  ::close(from);
  return err;
}
int send_into(const Target& t) {
  const int from = ::open(t.spare.c_str(), O_RDONLY | O_CLOEXEC);
  off_t at = 0;
  const int err = err_of(::sendfile(t.fd, from, &at, 100));
  ::close(from);
  return err;
}
int store(const Target& t) {
  void* const at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, t.fd, 0);
  if (at == MAP_FAILED) return errno;
  *static_cast<volatile char*>(at) = 'm';
  const int err = err_of(::msync(at, 4096, MS_SYNC));
  ::munmap(at, 4096);
  return err;
}
int set_flags(const Target& t) {
  int flags = 0;
  if (::ioctl(t.fd, FS_IOC_GETFLAGS, &flags) != 0) return errno;
  flags ^= FS_NODUMP_FL;
  return err_of(::ioctl(t.fd, FS_IOC_SETFLAGS, &flags));
}
int open_by(const Target& t, int flags) {
  const int fd = ::open(t.path.c_str(), flags | O_CLOEXEC, 0666);
  if (fd < 0) return errno;
  ::close(fd);
  return 0;
}
int vector_write(const Target& t, int flags) {
  char text[] = "vector";
  const iovec part{text, 6};
  return err_of(::pwritev2(t.fd, &part, 1, 0, flags));
}

const std::vector<Call>& calls() {
  using By = Call::By;
  const timespec old[2] = {{1'000'000, 0}, {1'000'000, 0}};
  static const std::vector<Call> all{
      {"write", EACCES, By::kWriter, [](const Target& t) { return err_of(::write(t.fd, "w", 1)); }},
      {"pwrite", EACCES, By::kWriter,
       [](const Target& t) { return err_of(::pwrite(t.fd, "p", 1, 5000)); }},
      {"pwritev2", EACCES, By::kWriter, [](const Target& t) { return vector_write(t, 0); }},
      {"pwritev2-append", EACCES, By::kWriter,
       [](const Target& t) { return vector_write(t, RWF_APPEND); }},
      {"ftruncate-shorter", EACCES, By::kWriter,
       [](const Target& t) { return err_of(::ftruncate(t.fd, 10)); }},
      {"ftruncate-longer", EACCES, By::kWriter,
       [](const Target& t) { return err_of(::ftruncate(t.fd, 1 << 20)); }},
      {"fallocate", EACCES, By::kWriter,
       [](const Target& t) { return err_of(::fallocate(t.fd, 0, 0, 1 << 18)); }},
      {"fallocate-punch", EACCES, By::kWriter,
       [](const Target& t) {
         return err_of(::fallocate(t.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
       }},
      {"copy_file_range", EACCES, By::kWriter, copy_into},
      {"sendfile", EACCES, By::kWriter, send_into},
      {"fchmod", EPERM, By::kReader, [](const Target& t) { return err_of(::fchmod(t.fd, 0640)); }},
      {"fchown", EPERM, By::kReader,
       [](const Target& t) { return err_of(::fchown(t.fd, uid_t(-1), ::getgid())); }},
      {"futimens", EPERM, By::kReader,
       [old](const Target& t) { return err_of(::futimens(t.fd, old)); }},
      {"futimens-now", EPERM, By::kReader,
       [](const Target& t) { return err_of(::futimens(t.fd, nullptr)); }},
      {"fsetxattr", EACCES, By::kReader,
       [](const Target& t) { return err_of(::fsetxattr(t.fd, "user.new", "1", 1, 0)); }},
      {"fremovexattr", EACCES, By::kReader,
       [](const Target& t) { return err_of(::fremovexattr(t.fd, "user.old")); }},
      {"FS_IOC_SETFLAGS", EPERM, By::kReader, set_flags},
      {"open-write", EACCES, By::kName, [](const Target& t) { return open_by(t, O_WRONLY); }},
      {"open-both", EACCES, By::kName, [](const Target& t) { return open_by(t, O_RDWR); }},
      {"open-append", EACCES, By::kName,
       [](const Target& t) { return open_by(t, O_WRONLY | O_APPEND); }},
      {"O_TRUNC", EACCES, By::kName,
       [](const Target& t) { return open_by(t, O_WRONLY | O_TRUNC); }},
      {"O_CREAT-O_TRUNC", EACCES, By::kName,
       [](const Target& t) { return open_by(t, O_WRONLY | O_CREAT | O_TRUNC); }},
      {"O_RDONLY-O_TRUNC", EACCES, By::kName,
       [](const Target& t) { return open_by(t, O_RDONLY | O_TRUNC); }},
      {"O_RDONLY-O_CREAT-O_TRUNC", EACCES, By::kName,
       [](const Target& t) { return open_by(t, O_RDONLY | O_CREAT | O_TRUNC); }},
      {"truncate", EACCES, By::kName,
       [](const Target& t) { return err_of(::truncate(t.path.c_str(), 7)); }},
      {"chmod", EPERM, By::kName,
       [](const Target& t) { return err_of(::chmod(t.path.c_str(), 0600)); }},
      {"chown", EPERM, By::kName,
       [](const Target& t) { return err_of(::lchown(t.path.c_str(), uid_t(-1), ::getgid())); }},
      {"utimensat", EPERM, By::kName,
       [old](const Target& t) { return err_of(::utimensat(AT_FDCWD, t.path.c_str(), old, 0)); }},
      {"setxattr", EACCES, By::kName,
       [](const Target& t) { return err_of(::setxattr(t.path.c_str(), "user.new", "1", 1, 0)); }},
      {"setxattr-acl", EACCES, By::kName,
       [](const Target& t) {
         return err_of(
             ::setxattr(t.path.c_str(), "system.posix_acl_access", kAcl.data(), kAcl.size(), 0));
       }},
      {"removexattr", EACCES, By::kName,
       [](const Target& t) { return err_of(::removexattr(t.path.c_str(), "user.old")); }},
      {"link", EACCES, By::kName,
       [](const Target& t) { return err_of(::link(t.path.c_str(), (t.path + "-l").c_str())); }},
      {"rename", EACCES, By::kName,
       [](const Target& t) { return err_of(::rename(t.path.c_str(), (t.path + "-r").c_str())); }},
      {"rename-over", EACCES, By::kName,
       [](const Target& t) { return err_of(::rename(t.spare.c_str(), t.path.c_str())); }},
      {"rename-exchange", EACCES, By::kName,
       [](const Target& t) {
         return err_of(
             ::renameat2(AT_FDCWD, t.path.c_str(), AT_FDCWD, t.spare.c_str(), RENAME_EXCHANGE));
       }},
      {"unlink", EACCES, By::kName,
       [](const Target& t) { return err_of(::unlink(t.path.c_str())); }},
      // Last: what is stored to stays.
      {"mmap", EACCES, By::kWriter, store},
  };
  return all;
}

enum class When : std::uint8_t { kBefore, kAfter };
enum class Via : std::uint8_t { kName, kLink, kMount };
const char* text_of(Via via) {
  return via == Via::kName ? "name" : via == Via::kLink ? "hard link" : "second mount";
}

std::string content(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

// All that a modification would change.
std::string state_of(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return "gone";
  std::ostringstream out;
  out << st.st_ino << ' ' << st.st_mode << ' ' << st.st_uid << ' ' << st.st_gid << ' '
      << st.st_nlink << ' ' << st.st_size << ' ' << st.st_mtim.tv_sec << '.' << st.st_mtim.tv_nsec
      << ' ' << st.st_ctim.tv_sec << '.' << st.st_ctim.tv_nsec << ' ' << st.st_blocks << ' '
      << std::hash<std::string>{}(content(path));
  return out.str();
}

class Matrix : public ::testing::Test {
 protected:
  Matrix() {
    MountFixture::Options options;
    first_.emplace(options);
    second_.emplace(first_->another());
    ::chmod(first_->source().c_str(), 0777);
  }

  std::string file(const std::string& name) const { return first_->source() + "/" + name; }

  void make(const std::string& name, uid_t owner) {
    const std::string path = file(name);
    std::ofstream{path} << std::string(kSize, 'c');
    ::setxattr(path.c_str(), "user.old", "1", 1, 0);
    ASSERT_EQ(::chown(path.c_str(), owner, owner), 0);
    ASSERT_EQ(::chmod(path.c_str(), 0666), 0);
  }

  Target target(const Call& call, Via via) const {
    Target t;
    const std::string dir = via == Via::kMount ? second_->mount() : first_->mount();
    t.path = dir + (via == Via::kLink ? "/h-" : "/f-") + call.name;
    t.spare = dir + "/s-" + call.name;
    return t;
  }
  // writer: the flags of who writes.
  static void open(Target& t, const Call& call, int writer) {
    if (call.by == Call::By::kName) return;
    t.fd = ::open(t.path.c_str(), (call.by == Call::By::kWriter ? writer : O_RDONLY) | O_CLOEXEC);
    t.open_err = t.fd < 0 ? errno : 0;
  }

  void check(uid_t actor, When when, Via via, bool locked);

  std::optional<MountFixture> first_, second_;
};

void Matrix::check(uid_t actor, When when, Via via, bool locked) {
  const bool refused = locked && actor == kOther;
  // What another user has open for reading and writing could not be locked at all:
  // filelock_guard_test.cpp.
  const int writer = refused && when == When::kBefore ? O_WRONLY : O_RDWR;
  std::vector<const Call*> todo;
  for (const Call& call : calls()) {
    if (writer == O_WRONLY && std::string_view{call.name} == "mmap") continue;
    if (when == When::kBefore && call.by == Call::By::kName) continue;
    todo.push_back(&call);
  }
  std::string request = R"({"paths": [)";
  for (const Call* call : todo) {
    make(std::string{"f-"} + call->name, actor);
    make(std::string{"s-"} + call->name, actor);
    ASSERT_EQ(::link(file(std::string{"f-"} + call->name).c_str(),
                     file(std::string{"h-"} + call->name).c_str()),
              0);
    request +=
        std::string{call == todo.front() ? "" : ", "} + R"({"path": "/f-)" + call->name + "\"}";
  }
  request += "]}";

  std::vector<Target> targets;
  for (const Call* call : todo) targets.push_back(target(*call, via));
  std::size_t at = 0;
  Actor process{actor,
                [&] {
                  for (std::size_t i = 0; when == When::kBefore && i < todo.size(); ++i) {
                    open(targets[i], *todo[i], writer);
                    if (targets[i].open_err != 0) return targets[i].open_err;
                  }
                  return 0;
                },
                [&] {
                  const Call& call = *todo[at];
                  Target& t = targets[at++];
                  if (when == When::kAfter) open(t, call, writer);
                  return t.open_err != 0 ? t.open_err : call.run(t);
                }};
  ASSERT_EQ(process.first(), 0);
  if (locked) {
    const Answer answer = ask_as(kLocker, first_->mount(), "filelock", request);
    ASSERT_EQ(answer.err, 0) << answer.reply;
  }
  for (const Call* call : todo) {
    const std::string path = file(std::string{"f-"} + call->name);
    const std::string before = state_of(path);
    const int got = process.next();
    EXPECT_EQ(got, refused ? call->refused : 0)
        << call->name << " by " << actor << " via " << text_of(via)
        << (when == When::kBefore ? " before" : " after") << ": " << std::strerror(got);
    if (refused) {
      EXPECT_EQ(state_of(path), before) << call->name << " via " << text_of(via);
    }
  }
}

TEST_F(Matrix, WithoutAFilelockEveryCallSucceeds) {
  for (const When when : {When::kBefore, When::kAfter}) {
    for (const Via via : {Via::kName, Via::kLink, Via::kMount}) {
      check(kOther, when, via, false);
      ASSERT_EQ(std::system(("rm -rf " + first_->source() + "/*").c_str()), 0);
    }
  }
}

class FilelockMatrix : public Matrix,
                       public ::testing::WithParamInterface<std::tuple<uid_t, When, Via>> {};

TEST_P(FilelockMatrix, GivesEachCallWhatTheTableSays) {
  const auto [actor, when, via] = GetParam();
  check(actor, when, via, true);
}

INSTANTIATE_TEST_SUITE_P(
    , FilelockMatrix,
    ::testing::Combine(::testing::Values(kLocker, kOther, uid_t{0}),
                       ::testing::Values(When::kBefore, When::kAfter),
                       ::testing::Values(Via::kName, Via::kLink, Via::kMount)),
    [](const auto& cell) {
      const uid_t actor = std::get<0>(cell.param);
      std::string name = actor == kLocker ? "Locker" : actor == kOther ? "Other" : "Admin";
      name += std::get<1>(cell.param) == When::kBefore ? "Before" : "After";
      const Via via = std::get<2>(cell.param);
      return name + (via == Via::kName ? "ByName" : via == Via::kLink ? "ByLink" : "BySecondMount");
    });

}  // namespace
}  // namespace latchfs::test
