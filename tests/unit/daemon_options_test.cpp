#include <gtest/gtest.h>

#include <algorithm>

#include "daemon/options.h"

namespace latchfs::daemon {
namespace {

using Args = std::vector<std::string>;

Environment test_environment() {
  return {[](const std::string& name) -> std::optional<gid_t> {
            if (name == "staff") return 50;
            return std::nullopt;
          },
          "build7", std::uint64_t{1} << 20, std::uint64_t{1} << 40, true};
}

Options accept(const Args& args) {
  const Parsed parsed = parse_options(args, test_environment());
  if (const auto* error = std::get_if<UsageError>(&parsed)) {
    ADD_FAILURE() << "refused: " << error->message;
    return {};
  }
  return std::get<Options>(parsed);
}

Options accept_o(const std::string& list) { return accept({"/src", "/mnt", "-o", list}); }

std::string refusal(const Args& args) {
  const Parsed parsed = parse_options(args, test_environment());
  const auto* error = std::get_if<UsageError>(&parsed);
  return error == nullptr ? "accepted" : error->message;
}

std::string refusal_o(const std::string& list) { return refusal({"/src", "/mnt", "-o", list}); }

TEST(Options, DefaultsAreTheContracts) {
  const Options o = accept({"/src", "/mnt"});
  EXPECT_EQ(o.source, "/src");
  EXPECT_EQ(o.mountpoint, "/mnt");
  EXPECT_FALSE(o.foreground);
  EXPECT_EQ(o.enforce, Enforce::kAdvisory);
  EXPECT_EQ(o.io, Io::kAuto);
  EXPECT_EQ(o.transport, Transport::kAuto);
  EXPECT_EQ(o.cache, Cache::kRelaxed);
  EXPECT_EQ(o.admin_gid, std::nullopt);
  EXPECT_EQ(o.control, ".locks");
  EXPECT_EQ(o.table, "machine");
  EXPECT_EQ(o.node_name, "build7");
  EXPECT_EQ(o.node_address, "127.0.0.1");
  EXPECT_FALSE(o.allow_other);
  EXPECT_FALSE(o.read_only);
  EXPECT_TRUE(o.mount_options.empty());
}

TEST(Options, TakesEveryOptionOfTheContract) {
  const Options o = accept_o(
      "enforce=mandatory,admin_group=staff,control=.l,table=t-1,table_max=2G,"
      "max_locks_per_user=7,node_name=n,node_address=10.0.0.1,snapshots=/.snap/*,"
      "log=/var/log/l,log_level=debug");
  EXPECT_EQ(o.enforce, Enforce::kMandatory);
  EXPECT_EQ(o.admin_gid, gid_t{50});
  EXPECT_EQ(o.control, ".l");
  EXPECT_EQ(o.table, "t-1");
  EXPECT_EQ(o.table_max, std::uint64_t{2} << 30);
  EXPECT_EQ(o.max_locks_per_user, 7u);
  EXPECT_EQ(o.node_name, "n");
  EXPECT_EQ(o.node_address, "10.0.0.1");
  EXPECT_EQ(o.snapshots, "/.snap/*");
  EXPECT_EQ(o.log, "/var/log/l");
  EXPECT_EQ(o.log_level, log::Level::kDebug);
}

TEST(Options, TakesThePlaceAndOrderThatMountHelpersUse) {
  // mount.fuse3: latchfs SOURCE MOUNTPOINT -o rw,...; people: options first, -oLIST, several -o.
  EXPECT_EQ(accept({"-o", "ro", "-ocontrol=c", "/src", "-f", "/mnt"}).control, "c");
  EXPECT_TRUE(accept({"-f", "/src", "/mnt"}).foreground);
  EXPECT_EQ(accept({"--", "-src", "/mnt"}).source, "-src");
}

TEST(Options, TakesWhatFstabLinesCarry) {
  const Options o = accept_o(
      "rw,nosuid,nodev,noatime,_netdev,noauto,auto,nofail,user,users,defaults,x-systemd.automount,"
      "x-gvfs-show,comment=hello,user=joe,nonempty,allow_other,default_permissions");
  EXPECT_EQ(o.mount_options, (Args{"nosuid", "nodev", "noatime"}));
  EXPECT_TRUE(o.allow_other);
  EXPECT_TRUE(o.default_permissions);
}

TEST(Options, TakesTheUsualFuseOptions) {
  const Options o = accept_o(
      "ro,sync,dirsync,noexec,max_read=65536,fsname=a\\,b,subtype=st,auto_unmount,"
      "attr_timeout=0.5,entry_timeout=2,negative_timeout=0");
  EXPECT_TRUE(o.read_only);
  EXPECT_TRUE(o.auto_unmount);
  EXPECT_EQ(o.fsname, "a,b");
  EXPECT_EQ(o.subtype, "st");
  EXPECT_EQ(o.attr_timeout, 0.5);
  EXPECT_EQ(o.entry_timeout, 2.0);
  EXPECT_EQ(o.mount_options, (Args{"sync", "dirsync", "noexec"}));
  EXPECT_EQ(o.max_read, 65536u);
  EXPECT_TRUE(accept_o("allow_root").allow_root);
}

TEST(Options, TimesAreTheBackingFileSystems) {
  const Options o = accept_o(
      "atime,relatime,norelatime,diratime,nodiratime,strictatime,nostrictatime,lazytime,"
      "nolazytime,silent,loud,nomand,noiversion");
  EXPECT_TRUE(o.mount_options.empty());
}

TEST(Options, NosymfollowIsForRoot) {
  EXPECT_EQ(accept_o("nosymfollow").mount_options, (Args{"nosymfollow"}));
  EXPECT_TRUE(accept_o("nosymfollow,symfollow").mount_options.empty());
  Environment user = test_environment();
  user.root = false;
  const Parsed parsed = parse_options({"/src", "/mnt", "-o", "nosymfollow"}, user);
  const auto* error = std::get_if<UsageError>(&parsed);
  ASSERT_NE(error, nullptr);
  EXPECT_EQ(error->message, "option 'nosymfollow' is root's: fusermount3 does not know it");
}

TEST(Options, TheLaterOfAPairWins) {
  EXPECT_EQ(accept_o("nodev,suid,dev,nosuid").mount_options, (Args{"dev", "nosuid"}));
  EXPECT_FALSE(accept_o("ro,rw").read_only);
  EXPECT_EQ(accept_o("noatime,noatime").mount_options, (Args{"noatime"}));
}

TEST(Options, HelpAndVersionNeedNothingElse) {
  for (const char* arg : {"-h", "--help"}) {
    EXPECT_TRUE(std::holds_alternative<Help>(parse_options({arg}, test_environment())));
  }
  for (const char* arg : {"-V", "--version"}) {
    EXPECT_TRUE(std::holds_alternative<Version>(parse_options({arg}, test_environment())));
  }
}

TEST(Options, SaysWhatIsWrongInOneLine) {
  EXPECT_EQ(refusal({}), "SOURCE and MOUNTPOINT are missing");
  EXPECT_EQ(refusal({"/src"}), "MOUNTPOINT is missing");
  EXPECT_EQ(refusal({"/src", ""}), "MOUNTPOINT is empty");
  EXPECT_EQ(refusal({"/a", "/b", "/c"}), "'/c' is one argument too many");
  EXPECT_EQ(refusal({"/a", "/b", "-x"}), "unknown option '-x'");
  EXPECT_EQ(refusal({"/a", "/b", "-o"}), "-o needs a list of options");
  EXPECT_EQ(refusal_o("bogus"), "unknown option 'bogus'");
  EXPECT_EQ(refusal_o("bogus\\012x=1"), "unknown option 'bogus\\x0ax=1'");
  EXPECT_EQ(refusal_o("ro=1"), "unknown option 'ro=1'");
  EXPECT_EQ(refusal_o("remount,ro").rfind("option 'remount' is not supported: ", 0), 0u);
  EXPECT_EQ(refusal_o("table_max"), "option 'table_max' needs a value");
  EXPECT_EQ(refusal_o("enforce=maybe"), "option 'enforce=maybe' must be advisory or mandatory");
  EXPECT_EQ(refusal_o("cache=no"), "option 'cache=no' must be strict or relaxed");
  EXPECT_EQ(refusal_o("io=fast"), "option 'io=fast' must be auto, direct or cached");
  EXPECT_EQ(refusal_o("transport=pigeon"), "option 'transport=pigeon' must be auto, dev or uring");
  EXPECT_EQ(refusal_o("io=cached,enforce=mandatory"),
            "io=cached and enforce=mandatory exclude each other");
  EXPECT_EQ(refusal_o("allow_other,allow_root"), "allow_other and allow_root exclude each other");
  EXPECT_EQ(refusal_o("ro\\"), "'-o ro\\x5c' ends in a lone backslash");
}

TEST(Options, ADaemonsLogIsNotTheTerminal) {
  EXPECT_EQ(refusal_o("log=stderr"), "log=stderr needs -f: a daemon has no terminal");
  EXPECT_EQ(accept({"/src", "/mnt", "-f", "-o", "log=stderr"}).log, "stderr");
}

TEST(Options, RefusesValuesOutOfBounds) {
  for (const char* list : {"admin_group=nosuchgroup",
                           "admin_group=",
                           "admin_group=4294967295",
                           "admin_group=-1",
                           "admin_group=4294967296",
                           "control=",
                           "control=.",
                           "control=..",
                           "control=a/b",
                           "table=",
                           "table=a/b",
                           "table=.hidden",
                           "table_max=0",
                           "table_max=1",
                           "table_max=1023K",
                           "table_max=1025G",
                           "table_max=-1M",
                           "table_max=1MB",
                           "table_max=99999999999999999999",
                           "max_locks_per_user=-1",
                           "max_locks_per_user=x",
                           "max_locks_per_user=",
                           "node_name=",
                           "node_name=a\\012b",
                           "node_address=",
                           "snapshots=",
                           "log=file",
                           "log=",
                           "log_level=loud",
                           "attr_timeout=-1",
                           "attr_timeout=inf",
                           "attr_timeout=nan",
                           "entry_timeout=1x",
                           "negative_timeout=",
                           "max_read=0",
                           "max_read=4095",
                           "max_read=x",
                           "fsname=",
                           "subtype="}) {
    const std::string why = refusal_o(list);
    EXPECT_NE(why, "accepted") << list;
    EXPECT_EQ(std::count(why.begin(), why.end(), '\n'), 0) << why;
  }
}

TEST(ParseSize, TakesBinarySuffixes) {
  EXPECT_EQ(parse_size("4096"), 4096u);
  EXPECT_EQ(parse_size("64k"), 65536u);
  EXPECT_EQ(parse_size("1M"), 1u << 20);
  EXPECT_EQ(parse_size("3GiB"), std::uint64_t{3} << 30);
  EXPECT_EQ(parse_size("1T"), std::uint64_t{1} << 40);
  for (const char* text : {"", "K", "1KB", "1.5G", " 1", "1 ", "0x10", "1Q", "-1", "+1",
                           "18446744073709551616", "17592186044416M"}) {
    EXPECT_EQ(parse_size(text), std::nullopt) << text;
  }
}

TEST(PrintSize, IsExactAndComesBack) {
  EXPECT_EQ(print_size(0), "0");
  EXPECT_EQ(print_size(1000), "1000");
  EXPECT_EQ(print_size(64 << 10), "64K");
  EXPECT_EQ(print_size(std::uint64_t{256} << 30), "256G");
  for (const std::uint64_t size : {1ull, 4096ull, 4097ull, 1ull << 40, 1ull << 50}) {
    EXPECT_EQ(parse_size(print_size(size)), size);
  }
}

TEST(Options, UsageNamesEveryOptionOfTheContract) {
  const std::string text = usage_text();
  for (const char* name :
       {"enforce=", "io=", "transport=", "cache=", "admin_group=", "control=", "table=",
        "table_max=", "max_locks_per_user=", "node_name=", "node_address=", "snapshots=", "log=",
        "log_level=", "allow_other", "-f"}) {
    EXPECT_NE(text.find(name), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace latchfs::daemon
