// A lock's way: applied, told anew, removed or reverted, on file systems of different abilities.
#include "filelock_fixture.h"

namespace latchfs::filelock {
namespace {

const std::set<std::string> kAlone{"f"};
const std::set<std::string> kLockedNames{".f.asp-bak", ".f.asp-lck", "f"};

TEST_P(FilelockGroundTest, ApplyingKeepsACopyOfEverything) {
  make_rich("f");
  const std::string before = seen("f");
  EXPECT_DONE(apply("f"));
  EXPECT_EQ(seen("f"), before);
  EXPECT_EQ(seen(".f.asp-bak"), before);
  EXPECT_EQ(names(), kLockedNames);
  EXPECT_TRUE(journals().empty());

  const auto lock = mark("f");
  ASSERT_TRUE(lock);
  EXPECT_EQ(lock->kind, MarkKind::kLock);
  EXPECT_EQ(lock->uid, 1000u);
  EXPECT_EQ(lock->name, "f");
  for (const char* side : {".f.asp-bak", ".f.asp-lck"}) {
    const auto side_mark = mark(side);
    ASSERT_TRUE(side_mark) << side;
    EXPECT_EQ(side_mark->kind, MarkKind::kSide);
    EXPECT_EQ(side_mark->id, lock->id);
  }
  struct stat st {};
  ASSERT_EQ(::lstat(path(".f.asp-lck").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0444u);
  EXPECT_EQ(st.st_uid, 0u);

  const Status now = status("f");
  EXPECT_EQ(now.condition, Condition::kLocked) << now.words;
  ASSERT_TRUE(now.info);
  EXPECT_EQ(now.info->user, "alice");
  EXPECT_EQ(now.info->path, "/f");
  EXPECT_EQ(now.info->tags, R"({"ticket":"42"})");
  EXPECT_EQ(now.info->locked_at, rfc3339(lock->locked_at_ns));
}

TEST_P(FilelockGroundTest, RemovingLeavesTheFileAsItIsNow) {
  make_rich("f");
  EXPECT_DONE(apply("f"));
  spoil("f");
  const std::string now = seen("f");
  EXPECT_DONE(remove("f"));
  EXPECT_EQ(seen("f"), now);
  EXPECT_EQ(names(), kAlone);
  EXPECT_FALSE(mark("f"));
  EXPECT_TRUE(journals().empty());
  EXPECT_REFUSED(remove("f"), ENOENT);
  EXPECT_REFUSED(revert("f"), ENOENT);
  EXPECT_REFUSED(retag("f", info()), ENOENT);
}

TEST_P(FilelockGroundTest, RevertingBringsEverythingBackIntoTheSameInode) {
  make_rich("f");
  const std::string before = seen("f");
  struct stat old {};
  ASSERT_EQ(::stat(path("f").c_str(), &old), 0);
  EXPECT_DONE(apply("f"));
  spoil("f");
  ASSERT_NE(seen("f"), before);
  EXPECT_DONE(revert("f"));
  EXPECT_EQ(seen("f"), before);
  struct stat now {};
  ASSERT_EQ(::stat(path("f").c_str(), &now), 0);
  EXPECT_EQ(now.st_ino, old.st_ino);
  EXPECT_EQ(names(), kAlone);
  EXPECT_FALSE(mark("f"));
  EXPECT_TRUE(journals().empty());
}

TEST_P(FilelockGroundTest, RevertingBringsBackWhatWasCutOffOrGivenAway) {
  make_rich("f");
  const std::string before = seen("f");
  EXPECT_DONE(apply("f"));
  ASSERT_EQ(::truncate(path("f").c_str(), 0), 0);
  ASSERT_EQ(::chown(path("f").c_str(), 2000, 2000), 0);
  EXPECT_DONE(revert("f"));
  EXPECT_EQ(seen("f"), before);
}

TEST_P(FilelockGroundTest, EmptyFilesToo) {
  write_file("f", "");
  const std::string before = seen("f");
  EXPECT_DONE(apply("f"));
  write_at("f", 0, "something");
  EXPECT_DONE(revert("f"));
  EXPECT_EQ(seen("f").substr(0, 40), before.substr(0, 40));
  EXPECT_EQ(names(), kAlone);
}

TEST_P(FilelockGroundTest, TagsAreReplacedAndTheFirstBackupStays) {
  make_rich("f");
  const std::string before = seen("f");
  EXPECT_DONE(apply("f"));
  spoil("f");
  EXPECT_REFUSED(apply("f"), EBUSY);
  EXPECT_DONE(retag("f", info(R"({"other":true})")));
  const Status now = status("f");
  EXPECT_EQ(now.condition, Condition::kLocked) << now.words;
  EXPECT_EQ(now.info->tags, R"({"other":true})");
  EXPECT_EQ(now.info->file.size, (5 << 20) + 123);
  EXPECT_EQ(seen(".f.asp-bak"), before);
  EXPECT_EQ(names(), kLockedNames);
  EXPECT_REFUSED(retag("f", info("7")), EINVAL);
  EXPECT_DONE(revert("f"));
  EXPECT_EQ(seen("f"), before);
}

TEST_P(FilelockGroundTest, ADefaultAclOfTheDirectoryIsNotForSideFiles) {
  write_file("f", "x", 0640);
  set_attribute(".", "system.posix_acl_default", acl());
  EXPECT_DONE(apply("f"));
  EXPECT_EQ(seen(".f.asp-bak").find("acl"), std::string::npos);
  EXPECT_EQ(seen(".f.asp-lck").find("acl"), std::string::npos);
  EXPECT_EQ(content(".f.asp-bak"), "x");
}

TEST_P(FilelockGroundTest, TheOwnerReadsTheMetadataOfHisPrivateFile) {
  write_file("f", "x", 0600);
  ASSERT_EQ(::chown(path("f").c_str(), 1000, 1000), 0);
  EXPECT_DONE(apply("f"));
  const auto may_read = [&](uid_t uid) {
    const std::string who = fmt::format("setpriv --reuid {} --regid {} --clear-groups ", uid, uid);
    return run("chmod 0755 " + path("..") + "; " + who + "cat " + path(".f.asp-lck"));
  };
  EXPECT_TRUE(may_read(1000));
  EXPECT_FALSE(may_read(1001));
  EXPECT_EQ(status("f").condition, Condition::kLocked);
}

TEST_P(FilelockGroundTest, TheLongestNameThatHasRoom) {
  const std::string most(246, 'n');
  const std::string more(247, 'n');
  write_file(most, "x");
  write_file(more, "x");
  EXPECT_DONE(apply(most));
  EXPECT_DONE(remove(most));
  EXPECT_REFUSED(apply(more), ENAMETOOLONG);
  EXPECT_REFUSED(remove(more), ENOENT);
  EXPECT_EQ(status(more).condition, Condition::kUnlocked);
  EXPECT_EQ(names(), (std::set<std::string>{most, more}));
}

TEST_P(FilelockGroundTest, MovingTheDirectoryKeepsIt) {
  ASSERT_EQ(::mkdir(path("d").c_str(), 0755), 0);
  write_file("d/f", "old");
  const auto in = [&](const std::string& dir, auto&& fn) {
    const UniqueFd fd{::open(path(dir).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
    const UniqueFd file = path_fd(dir + "/f");
    auto session = desk().begin({fd.get(), "f", file.get()}, in_ms(1000));
    ASSERT_TRUE(session) << session.failure().words;
    const auto outcome = fn(*session);
    EXPECT_TRUE(outcome) << outcome.failure().words;
  };
  in("d", [](Session& s) { return s.apply(info(), me()); });
  ASSERT_EQ(::rename(path("d").c_str(), path("e").c_str()), 0);
  write_at("e/f", 0, "new");
  in("e", [](Session& s) { return s.revert_and_remove(me()); });
  EXPECT_EQ(content("e/f"), "old");
  EXPECT_EQ(names_in(path("e")), kAlone);
}

INSTANTIATE_TEST_SUITE_P(On, FilelockGroundTest, testing::Values("default", "tmpfs", "xfs"),
                         [](const auto& param) { return std::string{param.param}; });

}  // namespace
}  // namespace latchfs::filelock
