#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fstream>
#include <limits>
#include <random>

#include "base/clock.h"
#include "posix/caller_status.h"
#include "posix/mountinfo.h"
#include "posix/nfsd_clients.h"
#include "posix_scratch.h"

namespace latchfs::posix {
namespace {

TEST(NfsdClients, FindTheAddressBeforeThePort) {
  EXPECT_EQ(NfsdClients::address_of("10.0.0.2:940"), "10.0.0.2");
  EXPECT_EQ(NfsdClients::address_of("[fe80::1%eth0]:940"), "fe80::1%eth0");
  for (const char* bad :
       {"", ":", "10.0.0.2", "10.0.0.2:", "10.0.0.2:x", "fe80::1:940", "[]:1", "[fe80::1:940"}) {
    EXPECT_EQ(NfsdClients::address_of(bad), "") << bad;
  }
}

TEST(NfsdClients, FindTheMachinesNameInALinuxClients) {
  EXPECT_EQ(NfsdClients::machine_of("Linux NFSv4.2 build7"), "build7");
  EXPECT_EQ(NfsdClients::machine_of("Linux NFSv4.1 0a1b-2c3d/build7"), "build7");
  EXPECT_EQ(NfsdClients::machine_of("Linux NFSv4.0 build7/10.0.0.1"), "build7");
  EXPECT_EQ(NfsdClients::machine_of("Linux NFSv4.0 build7/0a1b-2c3d/10.0.0.1"), "build7");
  // Others' are theirs to make.
  EXPECT_EQ(NfsdClients::machine_of("libnfs-17-build7"), "libnfs-17-build7");
  EXPECT_EQ(NfsdClients::machine_of("Linux NFSv4.2"), "Linux NFSv4.2");
  EXPECT_EQ(NfsdClients::machine_of(""), "");
}

// As Linux 6.1 prints them.
class NfsdClientsFiles : public Scratch {
 protected:
  void client(const std::string& number, const std::string& name, const std::string& address,
              const std::string& states) {
    make_dir(number);
    make_file(number + "/info", "clientid: 0x1d3a7c0e6741b3d5\naddress: \"" + address +
                                    "\"\nstatus: confirmed\nname: \"" + name +
                                    "\"\nminor version: 2\n");
    make_file(number + "/states", states);
  }
  static std::string lock_on(const std::string& inode) {
    return "- 0x00000001d5b34167: { type: lock, superblock: \"" + inode +
           "\", filename: \"a \\\"superblock: b\", owner: \"lock id:\\x01\" }\n";
  }
  std::vector<RemoteClient> on(std::uint64_t ino, std::int64_t since = 0) {
    return clients().with_locks_on(makedev(0, 0x2f), ino, since);
  }
  NfsdClients& clients() {
    if (!clients_) clients_ = std::make_unique<NfsdClients>(at("."));
    return *clients_;
  }

 private:
  std::unique_ptr<NfsdClients> clients_;
};

TEST_F(NfsdClientsFiles, NameAllThatHaveLocksOnAnInode) {
  const std::string open =
      "- 0x1: { type: open, access: rw, deny: --, superblock: \"00:2f:14\", "
      "filename: \"{ type: lock, superblock: \" }\n";
  client("3", "Linux NFSv4.2 two", "10.0.0.3:700",
         open + lock_on("00:2f:12") + lock_on("00:2f:12") + lock_on("08:01:13"));
  client("4", "Linux NFSv4.0 one/10.0.0.1", "10.0.0.2:800", open + lock_on("00:2f:12"));
  client("5", "Linux NFSv4.2 three", "[fe80::3]:900", lock_on("00:2f:-9223372036854775807"));
  make_file("6", "no directory");
  EXPECT_EQ(on(12), (std::vector<RemoteClient>{{"one", "10.0.0.2"}, {"two", "10.0.0.3"}}));
  EXPECT_TRUE(on(13).empty());  // another file system's
  EXPECT_TRUE(on(14).empty());  // open, not locked
  EXPECT_EQ(on((std::uint64_t{1} << 63) + 1), (std::vector<RemoteClient>{{"three", "fe80::3"}}));
}

TEST_F(NfsdClientsFiles, AreReadAnewForALockThatIsYounger) {
  client("1", "Linux NFSv4.2 one", "10.0.0.2:700", lock_on("00:2f:12"));
  ASSERT_EQ(on(12).size(), 1u);
  client("2", "Linux NFSv4.2 two", "10.0.0.3:700", lock_on("00:2f:12"));
  EXPECT_EQ(on(12, realtime_ns()).size(), 2u);
}

TEST_F(NfsdClientsFiles, AreNobodyWhereNothingCanBeRead) {
  EXPECT_TRUE(NfsdClients{at("missing")}.with_locks_on(1, 1, 0).empty());
}

TEST_F(NfsdClientsFiles, MayHoldAnyBytes) {
  std::mt19937 random{6};
  const std::string words[] = {
      "type: lock,", "superblock: \"",       "00:2f:12", "\"", ":",
      "-",           "99999999999999999999", "\n",       "{",  std::string(1, '\0')};
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (auto n = random() % 30; n != 0; --n) text += words[random() % std::size(words)];
    client(std::to_string(i), text, text, text);
  }
  static_cast<void>(on(12));
}

TEST(NfsdClients, AServersThreadIsTheKernels) {
  // Anybody may call himself so.
  ASSERT_EQ(::prctl(PR_SET_NAME, "nfsd"), 0);
  EXPECT_FALSE(NfsdClients::is_server_thread(static_cast<std::uint32_t>(::getpid()), "nfsd"));
  EXPECT_FALSE(NfsdClients::is_server_thread(::getpid()));
  EXPECT_FALSE(kernel_thread_name(::getpid()));
  EXPECT_FALSE(kernel_thread_name(0));
  EXPECT_FALSE(NfsdClients::is_server_thread(0, "nfsd"));
  EXPECT_FALSE(NfsdClients::is_server_thread(std::numeric_limits<std::uint32_t>::max(), "nfsd"));
  // kthreadd, where it can be seen, is the kernel's, by another name.
  std::ifstream comm{"/proc/2/comm"};
  std::string name;
  if (comm >> name && name == "kthreadd") {
    EXPECT_TRUE(NfsdClients::is_server_thread(2, "nfsd"));
    EXPECT_FALSE(NfsdClients::is_server_thread(2, name));
    EXPECT_EQ(kernel_thread_name(2), "kthreadd");
  }
}

TEST(SuperBlock, IsOfTheMountThatIsOnTop) {
  struct stat st {};
  ASSERT_EQ(::stat("/proc", &st), 0);
  EXPECT_EQ(super_block_at("/proc"), st.st_dev);
  EXPECT_EQ(super_block_at("/no such mount"), 0u);
}

}  // namespace
}  // namespace latchfs::posix
