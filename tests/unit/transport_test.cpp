// The channel under libfuse, on a socket in place of /dev/fuse: what it makes of INIT, what it says
// of a request, what short and strange messages do to it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "support/sanitized.h"
#include "transport/caller_state.h"
#include "transport/channel.h"
#include "transport/ring_entry.h"
#include "transport/wire.h"

namespace latchfs::transport {
namespace {

constexpr std::uint64_t kUnique = 42;
constexpr std::size_t kFlags = 3, kFlags2 = 8, kStackDepth = 9;
using InitOut = std::array<std::uint32_t, 16>;

std::optional<RequestFacts> g_seen;  // by the handlers, on this thread

// A session whose kernel is this test.
class FakeKernel {
 public:
  explicit FakeKernel(Wanted wanted) : channel{wanted} {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    kernel_ = ends[0];
    fuse_lowlevel_ops ops{};
    ops.setattr = [](fuse_req_t req, fuse_ino_t, struct stat*, int, fuse_file_info*) {
      g_seen = Channel::request();
      ::fuse_reply_err(req, 0);
    };
    ops.read = [](fuse_req_t req, fuse_ino_t, size_t, off_t, fuse_file_info*) {
      g_seen = Channel::request();
      ::fuse_reply_err(req, 0);
    };
    fuse_args args = FUSE_ARGS_INIT(0, nullptr);
    ::fuse_opt_add_arg(&args, "test");
    session_ = ::fuse_session_new(&args, &ops, sizeof ops, &channel);
    ::fuse_opt_free_args(&args);
    EXPECT_NE(session_, nullptr);
    EXPECT_TRUE(channel.attach(session_, ends[1]));
  }
  FakeKernel(const FakeKernel&) = delete;
  FakeKernel& operator=(const FakeKernel&) = delete;
  ~FakeKernel() {
    ::close(kernel_);
    ::fuse_session_destroy(session_);
  }

  // One message in, what comes back out ("" for nothing).
  std::string exchange(const std::string& message) {
    g_seen.reset();
    EXPECT_EQ(::send(kernel_, message.data(), message.size(), 0),
              static_cast<ssize_t>(message.size()));
    fuse_buf buffer{};
    const int got = ::fuse_session_receive_buf(session_, &buffer);
    if (got > 0) ::fuse_session_process_buf(session_, &buffer);
    std::free(buffer.mem);
    std::string answer(1 << 16, '\0');
    const ssize_t size = ::recv(kernel_, answer.data(), answer.size(), MSG_DONTWAIT);
    answer.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return answer;
  }

  template <class Body>
  static std::string message(std::uint32_t opcode, const Body& body,
                             std::size_t size = sizeof(Body)) {
    fuse_in_header header{};
    header.len = static_cast<std::uint32_t>(sizeof header + size);
    header.opcode = opcode;
    header.unique = kUnique;
    header.nodeid = 1;
    std::string text(sizeof header + size, '\0');
    std::memcpy(text.data(), &header, sizeof header);
    std::memcpy(text.data() + sizeof header, &body, size);
    return text;
  }

  // What the kernel hears of itself at INIT, when it offers these flags.
  InitOut init(std::uint64_t flags, std::uint32_t minor = 45) {
    fuse_init_in in{};
    in.major = 7;
    in.minor = minor;
    in.max_readahead = 131072;
    in.flags = static_cast<std::uint32_t>(flags);
    in.flags2 = static_cast<std::uint32_t>(flags >> 32);
    const std::string answer = exchange(message(FUSE_INIT, in));
    InitOut out{};
    EXPECT_EQ(answer.size(), sizeof(fuse_out_header) + sizeof out);
    if (answer.size() == sizeof(fuse_out_header) + sizeof out) {
      std::memcpy(out.data(), answer.data() + sizeof(fuse_out_header), sizeof out);
    }
    return out;
  }

  Channel channel;

 private:
  int kernel_{-1};
  fuse_session* session_{};
};

constexpr std::uint64_t kAll = wire::kInitExt | wire::kPassthrough | wire::kDirectIoAllowMmap;

TEST(Transport, InitSaysWhatWasWantedAndOffered) {
  FakeKernel kernel{{.passthrough = true, .direct_mmap = true}};
  EXPECT_FALSE(kernel.channel.direct_mmap());
  const InitOut out = kernel.init(kAll);
  EXPECT_EQ(out[0], 7U);
  EXPECT_NE(out[kFlags] & static_cast<std::uint32_t>(wire::kInitExt), 0U);
  EXPECT_EQ(out[kFlags2], static_cast<std::uint32_t>((kAll - wire::kInitExt) >> 32));
  EXPECT_EQ(out[kStackDepth], 1U);
  EXPECT_TRUE(kernel.channel.direct_mmap());
  // A socket knows no backing files: the trial fails, and says so once and for all.
  EXPECT_FALSE(kernel.channel.settled());
  EXPECT_FALSE(kernel.channel.passthrough());
  EXPECT_TRUE(kernel.channel.settled());
}

TEST(Transport, InitAsksForNothingThatWasNotOffered) {
  FakeKernel old{{.passthrough = true, .direct_mmap = true}};
  // Without INIT_EXT the upper half means nothing.
  const InitOut out = old.init(wire::kPassthrough | wire::kDirectIoAllowMmap, 31);
  EXPECT_EQ(out[kFlags2] & static_cast<std::uint32_t>(kAll >> 32), 0U);
  EXPECT_EQ(out[kStackDepth], 0U);
  EXPECT_FALSE(old.channel.direct_mmap());
  EXPECT_FALSE(old.channel.passthrough());
}

TEST(Transport, InitAsksForNothingThatWasNotWanted) {
  FakeKernel kernel{{}};
  const InitOut out = kernel.init(kAll);
  EXPECT_EQ(out[kFlags2] & static_cast<std::uint32_t>(kAll >> 32), 0U);
  EXPECT_EQ(out[kStackDepth], 0U);
  EXPECT_FALSE(kernel.channel.direct_mmap());
}

TEST(Transport, RequestsTellTheirLockOwner) {
  FakeKernel kernel{{}};
  (void)kernel.init(kAll);
  fuse_setattr_in set{};
  set.valid = FATTR_SIZE | FATTR_LOCKOWNER;
  set.lock_owner = 0xABCDEF;
  (void)kernel.exchange(FakeKernel::message(FUSE_SETATTR, set));
  ASSERT_TRUE(g_seen);
  EXPECT_EQ(g_seen->opcode, static_cast<std::uint32_t>(FUSE_SETATTR));
  EXPECT_EQ(g_seen->lock_owner, 0xABCDEFU);

  set.valid = FATTR_SIZE;  // the field is there, and means nothing
  (void)kernel.exchange(FakeKernel::message(FUSE_SETATTR, set));
  ASSERT_TRUE(g_seen);
  EXPECT_FALSE(g_seen->lock_owner);

  fuse_read_in read{};
  read.size = 4096;
  read.read_flags = FUSE_READ_LOCKOWNER;
  read.lock_owner = 7;
  (void)kernel.exchange(FakeKernel::message(FUSE_READ, read));
  ASSERT_TRUE(g_seen);
  EXPECT_EQ(g_seen->lock_owner, 7U);
  read.read_flags = 0;
  (void)kernel.exchange(FakeKernel::message(FUSE_READ, read));
  ASSERT_TRUE(g_seen);
  EXPECT_FALSE(g_seen->lock_owner);
}

TEST(Transport, ShortMessagesAreNotReadBeyondTheirEnd) {
  FakeKernel kernel{{.passthrough = true, .direct_mmap = true}};
  fuse_init_in in{};
  in.major = 7;
  in.minor = 45;
  in.flags = static_cast<std::uint32_t>(wire::kInitExt);
  // Cut anywhere: no crash (the sanitizers watch), and no flags that were not there.
  for (std::size_t size = 0; size <= 20; ++size) {
    FakeKernel short_kernel{{.passthrough = true, .direct_mmap = true}};
    (void)short_kernel.exchange(FakeKernel::message(FUSE_INIT, in, size));
    EXPECT_FALSE(short_kernel.channel.direct_mmap()) << size;
  }
}

TEST(Transport, AnswersOfOpenAndCreateAreTheKernelsStructs) {
  const auto open = wire::open_answer(0x1122334455667788, {wire::kFilePassthrough, 9});
  std::uint64_t fh{};
  std::uint32_t flags{};
  std::int32_t id{};
  std::memcpy(&fh, open.data(), 8);
  std::memcpy(&flags, open.data() + 8, 4);
  std::memcpy(&id, open.data() + 12, 4);
  EXPECT_EQ(fh, 0x1122334455667788U);
  EXPECT_EQ(flags, 1U << 7);
  EXPECT_EQ(id, 9);

  fuse_entry_param entry{};
  entry.ino = 5;
  entry.generation = 6;
  entry.entry_timeout = 1.25;
  entry.attr_timeout = 0;
  entry.attr.st_ino = 77;
  entry.attr.st_size = 1LL << 40;
  entry.attr.st_mode = S_IFREG | 0640;
  entry.attr.st_mtim = {1'700'000'000, 999'999'999};
  entry.attr.st_nlink = 3;
  entry.attr.st_uid = 1000;
  entry.attr.st_blksize = 4096;
  const auto create = wire::create_answer(entry, 8, {0, 0});
  fuse_entry_out out{};
  std::memcpy(&out, create.data(), sizeof out);
  EXPECT_EQ(out.nodeid, 5U);
  EXPECT_EQ(out.generation, 6U);
  EXPECT_EQ(out.entry_valid, 1U);
  EXPECT_EQ(out.entry_valid_nsec, 250'000'000U);
  EXPECT_EQ(out.attr_valid, 0U);
  EXPECT_EQ(out.attr.ino, 77U);
  EXPECT_EQ(out.attr.size, 1ULL << 40);
  EXPECT_EQ(out.attr.mode, static_cast<std::uint32_t>(S_IFREG | 0640));
  EXPECT_EQ(out.attr.mtime, 1'700'000'000U);
  EXPECT_EQ(out.attr.mtimensec, 999'999'999U);
  EXPECT_EQ(out.attr.nlink, 3U);
  EXPECT_EQ(out.attr.uid, 1000U);
  EXPECT_EQ(out.attr.blksize, 4096U);
  std::memcpy(&fh, create.data() + sizeof out, 8);
  EXPECT_EQ(fh, 8U);
}

TEST(RingEntries, ANumberIsOfOneRequestOnly) {
  RingEntries entries{8192};
  const auto first = entries.add(3);
  const auto second = entries.add(4);
  ASSERT_TRUE(first);
  ASSERT_TRUE(second);
  EXPECT_EQ((*second)->queue, 4U);
  const std::uint64_t one = RingEntries::begin(**first, 42, 42);
  const std::uint64_t two = RingEntries::begin(**second, 44, 44);
  EXPECT_TRUE(is_ring_number(one));
  EXPECT_NE(one, two);
  EXPECT_EQ(entries.find(one), *first);
  EXPECT_EQ(entries.find(two), *second);
  const std::uint64_t next = RingEntries::begin(**first, 46, 46);
  EXPECT_NE(next, one);
  EXPECT_EQ((*first)->number, next);  // the old one matches no more
}

TEST(RingEntries, NumbersOfNothingAreNothing) {
  const RingEntries entries{8192};
  for (const std::uint64_t number :
       {std::uint64_t{0}, std::uint64_t{42}, std::uint64_t{1} << 62, std::uint64_t{1} << 63,
        (std::uint64_t{1} << 63) | 0xffffffff, (std::uint64_t{1} << 63) | (RingEntries::kMost - 1),
        ~std::uint64_t{0}}) {
    EXPECT_EQ(entries.find(number), nullptr) << number;
  }
}

TEST(RingEntries, TheMemoryIsTheEntrysOwnToItsEnd) {
  RingEntries entries{8192};
  std::vector<RingEntry*> all;
  for (int i = 0; i < 600; ++i) {  // more than one chunk
    const auto entry = entries.add(0);
    ASSERT_TRUE(entry);
    all.push_back(*entry);
    std::memset((*entry)->payload - RingEntry::kFront, i, RingEntry::kFront + 8192);
  }
  for (int i = 0; i < 600; ++i) {
    EXPECT_EQ(all[i]->payload[8191], static_cast<char>(i));
    EXPECT_EQ(all[i]->payload[-static_cast<int>(RingEntry::kFront)], static_cast<char>(i));
    EXPECT_EQ(all[i]->index, static_cast<std::uint32_t>(i));
  }
}

// A vfork(2)ing parent sleeps like one whose interrupt was lost.
TEST(CallerState, TellsWhoSleepsDeaf) {
  EXPECT_FALSE(sleeps_deaf(0));
  EXPECT_FALSE(sleeps_deaf(0xffffffff));
  EXPECT_FALSE(sleeps_deaf(static_cast<std::uint32_t>(::getpid())));
  // Its name looks like the state of one that does.
  ASSERT_EQ(::prctl(PR_SET_NAME, "x) D 1"), 0);
  EXPECT_FALSE(sleeps_deaf(static_cast<std::uint32_t>(::getpid())));
  if (test::kSanitized) return;  // they make a fork(2) of it
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const pid_t sleeper = ::fork();
  if (sleeper == 0) {
    const pid_t child = ::vfork();
    if (child == 0) {
      char byte{};
      (void)!::read(ends[0], &byte, 1);
      ::_exit(0);
    }
    ::waitpid(child, nullptr, 0);
    ::_exit(0);
  }
  bool deaf = false;
  for (int i = 0; i < 10'000 && !deaf; ++i) {
    deaf = sleeps_deaf(static_cast<std::uint32_t>(sleeper));
    if (!deaf) ::usleep(1000);
  }
  EXPECT_TRUE(deaf);
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  ::waitpid(sleeper, nullptr, 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace latchfs::transport
