// The bytes of files: random sequences against a model, through two mounts and below them, however
// files are read; many writers at once; the kinds of input and output that programs use.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "support/io_check.h"
#include "support/mount_fixture.h"

namespace latchfs::test {
namespace {

std::chrono::seconds time_for_fresh_seeds() {
  const char* text = std::getenv("LATCHFS_TEST_SECONDS");
  return std::chrono::seconds{text != nullptr ? std::atoi(text) : 15};
}

TEST(IoCheckTrial, FindsWhatIsPlanted) {
  const TempDir place;
  IoCheck check{{place.path(), place.path()}};
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    const auto wrong = run_io_check(check, seed);
    ASSERT_FALSE(wrong) << "seed " << seed << ": " << *wrong;
  }
  for (const Planted bug : {Planted::kLostByte, Planted::kDirtyTail, Planted::kStaleRead,
                            Planted::kWrongOffset, Planted::kStaleMap}) {
    check.planted = bug;
    bool found = false;
    for (std::uint64_t seed = 1; seed <= 3 && !found; ++seed) {
      found = run_io_check(check, seed).has_value();
    }
    EXPECT_TRUE(found) << static_cast<int>(bug);
  }
}

class Io : public testing::TestWithParam<const char*> {
 protected:
  static MountFixture::Options options() {
    MountFixture::Options options;
    options.options = {std::string{"io="} + GetParam()};
    return options;
  }
  static bool is_cached() { return std::string_view{GetParam()} == "cached"; }
};
// (By io_uring too, where that is switched on.)
INSTANTIATE_TEST_SUITE_P(Modes, Io,
                         testing::Values("auto", "direct", "cached", "auto,transport=dev"),
                         [](const auto& mode) {
                           std::string name{mode.param};
                           for (char& ch : name) {
                             if (ch == ',' || ch == '=') ch = '_';
                           }
                           return name;
                         });

// LATCHFS_SEED replays one sequence.
TEST_P(Io, RandomSequencesLikeTheModel) {
  MountFixture a{options()};
  MountFixture b{a.another()};
  IoCheck everywhere{{a.mount(), b.mount(), a.source()}};
  // Mappings are of the backing file, and the same in all places, only where it is passed through.
  const bool passed = a.io() == "passthrough";
  everywhere.mappings = passed;
  everywhere.may_refuse_sendfile = passed;
  IoCheck alone{{a.mount()}};
  alone.may_refuse_sendfile = passed;
  const auto run = [&](std::uint64_t seed) {
    for (const IoCheck* check : {&everywhere, &alone}) {
      // A mount's own pages may be stale when another place wrote: docs/adr/0009.
      if (check == &everywhere && is_cached()) continue;
      const auto wrong = run_io_check(*check, seed);
      ASSERT_FALSE(wrong) << "LATCHFS_SEED=" << seed << (check == &alone ? " (one mount): " : ": ")
                          << *wrong;
    }
  };
  if (const char* seed = std::getenv("LATCHFS_SEED")) return run(std::strtoull(seed, nullptr, 10));
  for (std::uint64_t seed = 1; seed <= 2 && !HasFailure(); ++seed) run(seed);
  std::random_device random;
  const auto until = std::chrono::steady_clock::now() + time_for_fresh_seeds();
  while (!HasFailure() && std::chrono::steady_clock::now() < until) run(random());
}

// Who only reads does not need the daemon at all.
TEST_P(Io, ReadersGoPastTheDaemonWherePassedThrough) {
  MountFixture a{options()};
  if (a.io() != "passthrough") {
    EXPECT_EQ(a.io(), is_cached() ? "cached" : "direct");
    return;
  }
  const std::string path = a.mount() + "/file";
  std::ofstream{path} << "hello";
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::kill(a.daemon(), SIGSTOP), 0);
  // A child, so that a read that waits for the daemon does not hang the test. (Its end does wait:
  // each descriptor that is closed tells the daemon.)
  std::array<int, 2> said{};
  ASSERT_EQ(::pipe2(said.data(), O_CLOEXEC), 0);
  const pid_t reader = ::fork();
  if (reader == 0) {
    std::array<char, 5> text{};
    const bool read =
        ::pread(fd, text.data(), 5, 0) == 5 && std::memcmp(text.data(), "hello", 5) == 0;
    void* map = ::mmap(nullptr, 5, PROT_READ, MAP_SHARED, fd, 0);
    const bool mapped = map != MAP_FAILED && std::memcmp(map, "hello", 5) == 0;
    const char verdict = !read ? 'r' : !mapped ? 'm' : 'y';
    ::_exit(::write(said[1], &verdict, 1) == 1 ? 0 : 1);
  }
  pollfd end{said[0], POLLIN, 0};
  const bool answered = ::poll(&end, 1, 60'000) == 1;
  ::kill(a.daemon(), SIGCONT);
  EXPECT_TRUE(answered) << "reading waited for the daemon";
  char verdict{};
  if (answered) {
    EXPECT_EQ(::read(said[0], &verdict, 1), 1);
  }
  EXPECT_EQ(verdict, 'y');
  ::waitpid(reader, nullptr, 0);
  for (const int each : {fd, said[0], said[1]}) ::close(each);
}

void works_directly(const std::string& source) {
  MountFixture::Options options;
  options.source = source;
  MountFixture mount{options};
  EXPECT_EQ(mount.io(), "direct");
  const std::string path = mount.mount() + "/file";
  std::ofstream{path} << "hello";
  for (const int flags : {O_RDONLY, O_RDWR, O_RDONLY | O_DIRECT}) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
    ASSERT_GE(fd, 0) << flags << ": " << std::strerror(errno);
    alignas(4096) std::array<char, 4096> text{};
    EXPECT_EQ(::pread(fd, text.data(), text.size(), 0), 5) << flags;
    ::close(fd);
  }
}

// What cannot be passed through, or would differ then, is not, and `status` says so.
TEST(IoBelow, FileSystemsThatDoNotSuitAreReadThroughTheDaemon) {
  const OwnFileSystem ramfs{"ramfs"};
  ASSERT_TRUE(ramfs.ok()) << "needs root";
  works_directly(ramfs.path());

  const OwnFileSystem tmpfs{"tmpfs"};
  ASSERT_TRUE(tmpfs.ok());
  for (const char* name : {"/lower", "/upper", "/work"}) {
    ASSERT_EQ(::mkdir((tmpfs.path() + name).c_str(), 0755), 0);
  }
  const OwnFileSystem overlay{"overlay", "lowerdir=" + tmpfs.path() +
                                             "/lower,upperdir=" + tmpfs.path() +
                                             "/upper,workdir=" + tmpfs.path() + "/work"};
  if (!overlay.ok()) GTEST_SKIP() << "no overlayfs here: " << std::strerror(errno);
  works_directly(overlay.path());
}

// Linkers write through mappings, and build tools look at the time next.
TEST(IoBelow, TimesAreRightWhenAMappedFileWasClosed) {
  MountFixture::Options options;
  options.options = {"cache=relaxed,attr_timeout=5"};
  MountFixture a{options};
  const std::string name = "/file";
  std::ofstream{a.mount() + name} << std::string(4096, 'x');
  struct stat st {
  }, below{};
  for (int round = 0; round < 5; ++round) {
    const int fd = ::open((a.mount() + name).c_str(), O_RDWR | O_CLOEXEC);
    auto* map =
        static_cast<char*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    ASSERT_NE(map, MAP_FAILED);
    ASSERT_EQ(::stat((a.mount() + name).c_str(), &st), 0);
    ::usleep(20'000);
    map[round] = 'y';
    ASSERT_EQ(::msync(map, 4096, MS_SYNC), 0);
    ::munmap(map, 4096);
    ::close(fd);
    ASSERT_EQ(::stat((a.mount() + name).c_str(), &st), 0);
    ASSERT_EQ(::stat((a.source() + name).c_str(), &below), 0);
    EXPECT_EQ(st.st_mtim.tv_sec, below.st_mtim.tv_sec);
    EXPECT_EQ(st.st_mtim.tv_nsec, below.st_mtim.tv_nsec);
  }
}

// Each record whole, none lost, none twice, the order of one writer kept.
TEST_P(Io, AppendsOfManyWritersAreExact) {
  MountFixture a{options()};
  MountFixture b{a.another()};
  constexpr int kWriters = 6, kRecords = 200;
  const std::string name = "/log";
  std::ofstream{a.source() + name}.flush();
  std::vector<pid_t> writers;
  for (int w = 0; w < kWriters; ++w) {
    const pid_t pid = ::fork();
    if (pid != 0) {
      writers.push_back(pid);
      continue;
    }
    const std::string path = (w % 2 == 0 ? a : b).mount() + name;
    const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    for (int r = 0; r < kRecords; ++r) {
      // Of different lengths, over page borders.
      std::array<char, 700> line{};
      std::memset(line.data(), 'x', line.size());
      const int head = std::snprintf(line.data(), line.size(), "%d %d ", w, r);
      line[static_cast<std::size_t>(head)] = 'x';
      const std::size_t size = 100 + static_cast<std::size_t>((w * 37 + r * 101) % 600);
      line[size - 1] = '\n';
      if (::write(fd, line.data(), size) != static_cast<ssize_t>(size)) ::_exit(1);
    }
    ::_exit(0);
  }
  for (const pid_t pid : writers) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0);
  }
  std::array<int, kWriters> next{};
  std::ifstream in{a.source() + name};
  std::string line;
  int lines = 0;
  for (; std::getline(in, line); ++lines) {
    int w = -1, r = -1;
    ASSERT_EQ(std::sscanf(line.c_str(), "%d %d ", &w, &r), 2) << line;
    ASSERT_TRUE(w >= 0 && w < kWriters) << line;
    EXPECT_EQ(r, next[static_cast<std::size_t>(w)]++);
    EXPECT_EQ(line.size() + 1, static_cast<std::size_t>(100 + (w * 37 + r * 101) % 600));
  }
  EXPECT_EQ(lines, kWriters * kRecords);
}

// What is stored into a mapping of a file opened to append is written back to its place, and what
// is appended meanwhile to the end.
TEST_P(Io, AppendsBesideAMappingAreExact) {
  MountFixture a{options()};
  MountFixture b{a.another()};
  constexpr std::size_t kHead = 1 << 16, kRecords = 2000, kRecord = 16;
  std::ofstream{a.source() + "/file"} << std::string(kHead, 'h');
  const int fd = ::open((a.mount() + "/file").c_str(), O_RDWR | O_APPEND | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  auto* map = static_cast<char*>(::mmap(nullptr, kHead, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(map, MAP_FAILED);
  const auto record_of = [](int writer, std::size_t i) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%d appends %05zu\n", writer, i);
    return std::string{text.data()};
  };
  std::vector<pid_t> appenders;
  for (int writer = 0; writer < 2; ++writer) {
    const pid_t pid = ::fork();
    if (pid != 0) {
      appenders.push_back(pid);
      continue;
    }
    const int out =
        writer == 0 ? fd : ::open((b.mount() + "/file").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    for (std::size_t i = 0; i < kRecords; ++i) {
      if (::write(out, record_of(writer, i).data(), kRecord) != kRecord) ::_exit(1);
    }
    ::_exit(0);
  }
  char byte = 'a';
  for (const pid_t pid : appenders) {
    int status = 0;
    while (::waitpid(pid, &status, WNOHANG) == 0) {
      byte = byte == 'z' ? 'a' : static_cast<char>(byte + 1);
      std::memset(map, byte, kHead);
      ASSERT_EQ(::msync(map, kHead, MS_SYNC), 0);
    }
    EXPECT_EQ(status, 0);
  }
  ::munmap(map, kHead);
  ::close(fd);
  std::ifstream in{a.source() + "/file"};
  const std::string text{std::istreambuf_iterator<char>{in}, {}};
  EXPECT_EQ(text.size(), kHead + 2 * kRecords * kRecord);
  EXPECT_EQ(text.substr(0, kHead), std::string(kHead, byte));
  std::array<std::size_t, 2> next{};
  for (std::size_t at = kHead; at + kRecord <= text.size(); at += kRecord) {
    const int writer = text[at] - '0';
    ASSERT_TRUE(writer == 0 || writer == 1) << text.substr(at, kRecord);
    ASSERT_EQ(text.substr(at, kRecord), record_of(writer, next.at(text[at] == '1' ? 1 : 0)++));
  }
}

// Linux's own asynchronous I/O (io_submit(2)), as databases use it, with and without O_DIRECT.
TEST_P(Io, AsynchronousIo) {
  MountFixture a{options()};
  constexpr std::size_t kBlock = 4096, kBlocks = 64;
  for (const int extra : {0, O_DIRECT}) {
    const std::string path = a.mount() + "/aio";
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | extra, 0600);
    ASSERT_GE(fd, 0);
    aio_context_t context{};
    ASSERT_EQ(::syscall(SYS_io_setup, kBlocks, &context), 0);
    auto* memory = static_cast<char*>(std::aligned_alloc(kBlock, kBlock * kBlocks));
    const auto all = [&](std::uint16_t opcode) {
      std::array<iocb, kBlocks> requests{};
      std::vector<iocb*> pointers;
      for (std::size_t i = 0; i < kBlocks; ++i) {
        requests[i].aio_lio_opcode = opcode;
        requests[i].aio_fildes = static_cast<std::uint32_t>(fd);
        requests[i].aio_buf = reinterpret_cast<std::uint64_t>(memory + i * kBlock);
        requests[i].aio_nbytes = kBlock;
        requests[i].aio_offset = static_cast<std::int64_t>((kBlocks - 1 - i) * kBlock);
        pointers.push_back(&requests[i]);
      }
      ASSERT_EQ(::syscall(SYS_io_submit, context, kBlocks, pointers.data()),
                static_cast<long>(kBlocks));
      std::array<io_event, kBlocks> events{};
      ASSERT_EQ(::syscall(SYS_io_getevents, context, kBlocks, kBlocks, events.data(), nullptr),
                static_cast<long>(kBlocks));
      for (const io_event& event : events) EXPECT_EQ(event.res, static_cast<long>(kBlock));
    };
    for (std::size_t i = 0; i < kBlocks; ++i) {
      std::memset(memory + i * kBlock, static_cast<int>('0' + i), kBlock);
    }
    all(IOCB_CMD_PWRITE);
    std::memset(memory, 0, kBlock * kBlocks);
    all(IOCB_CMD_PREAD);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      EXPECT_EQ(memory[i * kBlock], static_cast<char>('0' + i));
      EXPECT_EQ(memory[i * kBlock + kBlock - 1], static_cast<char>('0' + i));
    }
    ::syscall(SYS_io_destroy, context);
    std::free(memory);
    ::close(fd);
  }
}

// Opened and closed by many at once, to read and to write: the kernel must never see two ways.
TEST_P(Io, OpensOfAllKindsAtOnce) {
  MountFixture a{options()};
  const std::string path = a.mount() + "/file";
  std::ofstream{path} << std::string(10'000, 'x');
  std::vector<pid_t> children;
  for (int n = 0; n < 6; ++n) {
    const pid_t pid = ::fork();
    if (pid != 0) {
      children.push_back(pid);
      continue;
    }
    std::minstd_rand random{static_cast<unsigned>(n)};
    for (int i = 0; i < 700; ++i) {
      constexpr std::array<int, 4> kFlags{O_RDONLY, O_RDWR, O_WRONLY | O_APPEND, O_RDONLY};
      const int flags = kFlags[random() % kFlags.size()];
      const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
      if (fd < 0) ::_exit(1);
      std::array<char, 100> bytes{};
      if (flags != (O_WRONLY | O_APPEND) && ::pread(fd, bytes.data(), 100, 50) != 100) ::_exit(2);
      if (flags == O_RDWR && ::pwrite(fd, "yyy", 3, 5) != 3) ::_exit(3);
      if (flags != (O_WRONLY | O_APPEND) && random() % 4 == 0) {
        void* map = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) ::_exit(4);
        if (static_cast<char*>(map)[60] != 'x') ::_exit(5);
        ::munmap(map, 4096);
      }
      ::close(fd);
    }
    ::_exit(0);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

// sendfile(2) from a descriptor that can write would show old pages: EINVAL, and programs read.
TEST_P(Io, SendfileIsFreshOrRefused) {
  MountFixture a{options()};
  const std::string path = a.mount() + "/file";
  std::ofstream{path} << "first";
  const int writer = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  const int reader = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const int out = ::memfd_create("out", MFD_CLOEXEC);
  off_t at = 0;
  EXPECT_EQ(::syscall(SYS_sendfile, out, reader, &at, 5), 5);
  at = 0;
  const long sent = ::syscall(SYS_sendfile, out, writer, &at, 5);
  const int err = errno;
  if (a.io() == "passthrough") {
    EXPECT_EQ(sent, -1);
    EXPECT_EQ(err, EINVAL);
    // Nor for who calls himself as the kernel's NFS server does, which cannot read instead.
    std::array<char, 16> name{};
    ASSERT_EQ(::prctl(PR_GET_NAME, name.data()), 0);
    ASSERT_EQ(::prctl(PR_SET_NAME, "nfsd"), 0);
    at = 0;
    EXPECT_EQ(::syscall(SYS_sendfile, out, writer, &at, 5), -1);
    EXPECT_EQ(errno, EINVAL);
    ASSERT_EQ(::prctl(PR_SET_NAME, name.data()), 0);
  } else {
    EXPECT_EQ(sent, 5);
  }
  ASSERT_EQ(::pwrite(writer, "again", 5, 0), 5);
  at = 0;
  EXPECT_EQ(::syscall(SYS_sendfile, out, reader, &at, 5), 5);
  std::array<char, 5> text{};
  EXPECT_EQ(::pread(out, text.data(), 5, ::lseek(out, 0, SEEK_END) - 5), 5);
  EXPECT_EQ(std::string(text.data(), 5), "again");
  ::close(writer);
  ::close(reader);
  ::close(out);
}

}  // namespace
}  // namespace latchfs::test
