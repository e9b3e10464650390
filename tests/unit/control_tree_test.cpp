#include <fcntl.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "control/query_nodes.h"
#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using control::kControlBit;
using control::kMirrorBit;
using control::kTreeRoot;
using control::NodeAttr;

int errno_of(const Result<NodeAttr>& result) { return result.error().value(); }

TEST(ControlTree, RootListsItsNamesAndNoQueries) {
  ControlWorld world;
  world.walk("list?pid=1").value();
  const auto listed = world.tree().readdir(kTreeRoot);
  ASSERT_TRUE(listed.ok());
  std::set<std::string> names;
  for (const auto& name : *listed) {
    names.insert(name.name);
    const auto attr = world.walk(name.name);
    ASSERT_TRUE(attr.ok()) << name.name;
    EXPECT_EQ(attr->attr.st_mode & S_IFMT, name.type);
    EXPECT_EQ(attr->attr.st_ino, name.ino);
    EXPECT_TRUE(control::is_control(attr->node));
  }
  EXPECT_EQ(names, (std::set<std::string>{"README", "list", "waiters", "files", "release", "reply",
                                          "status", "filelock", "unfilelock"}));
}

TEST(ControlTree, ModesAreWhatCallersMayDo) {
  ControlWorld world;
  EXPECT_EQ(world.tree().getattr(kTreeRoot, kAlice)->attr.st_mode, mode_t{S_IFDIR | 0555});
  EXPECT_EQ(world.walk("list")->attr.st_mode, mode_t{S_IFREG | 0444});
  EXPECT_EQ(world.walk("release")->attr.st_mode, mode_t{S_IFREG | 0666});
  EXPECT_EQ(world.walk("filelock")->attr.st_mode, mode_t{S_IFREG | 0666});
  EXPECT_EQ(world.walk("unfilelock")->attr.st_mode, mode_t{S_IFREG | 0666});
  EXPECT_EQ(world.walk("list?pid=1")->attr.st_mode, mode_t{S_IFREG | 0444});
  EXPECT_EQ(world.walk("filelock?uid=1")->attr.st_mode, mode_t{S_IFREG | 0444});
}

TEST(ControlTree, NamesThatAreNotThere) {
  ControlWorld world;
  for (const auto* name :
       {"nope", "unfilelock?", "unfilelock?ref=1", "events", "metrics", "List", "list ", "Filelock",
        "release?ref=1", "status?", "files?", "README?", ""}) {
    EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, name, kRoot)), ENOENT) << name;
  }
  EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, "list?colour=red", kRoot)), EINVAL);
  EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, "waiters?pid=", kRoot)), EINVAL);
  EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, "filelock?pid=1", kRoot)), EINVAL);
  EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, "list?user=alice", kRoot)), EINVAL);
  EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, std::string(256, 'x'), kRoot)), ENAMETOOLONG);
  EXPECT_EQ(errno_of(world.tree().lookup(kTreeRoot, std::string(255, 'x'), kRoot)), ENOENT);
  EXPECT_EQ(errno_of(world.tree().lookup(world.walk("list")->node, "x", kRoot)), ENOTDIR);
}

TEST(ControlTree, DotAndDotDot) {
  ControlWorld world;
  world.files.directory("/d");
  EXPECT_EQ(world.tree().lookup(kTreeRoot, ".", kRoot)->node, kTreeRoot);
  EXPECT_EQ(world.tree().lookup(kTreeRoot, "..", kRoot)->node, control::FileView::kRootNode);
  EXPECT_EQ(world.tree().lookup(kTreeRoot, "..", kRoot)->generation, 0u) << "as the kernel has it";
  const auto list = world.walk("list")->node;
  EXPECT_EQ(world.tree().lookup(list, ".", kRoot)->node, list);
  const auto query = world.walk("list?pid=1")->node;
  EXPECT_EQ(world.tree().lookup(query, ".", kRoot)->node, query);
  const auto files = world.walk("files")->node;
  EXPECT_EQ(world.tree().lookup(files, "..", kRoot)->node, kTreeRoot);
  const auto dir = world.walk("files/d")->node;
  EXPECT_EQ(world.tree().lookup(dir, ".", kRoot)->node, dir);
  EXPECT_EQ(world.tree().lookup(dir, "..", kRoot)->node, files);
}

TEST(ControlTree, DirectoriesCannotBeOpenedAsFiles) {
  ControlWorld world;
  world.files.directory("/d");
  for (const auto* path : {"", "files", "files/d"}) {
    const auto node = world.walk(path)->node;
    EXPECT_EQ(world.tree().open(node, O_RDONLY, kRoot).error().value(), EISDIR) << path;
    EXPECT_EQ(world.tree().open(node, O_WRONLY, kRoot).error().value(), EISDIR) << path;
  }
  EXPECT_EQ(world.tree().readdir(world.walk("list")->node).error().value(), ENOTDIR);
}

TEST(ControlTree, OnlyWhatTakesRequestsCanBeWritten) {
  ControlWorld world;
  world.files.file("/f");
  for (const auto* path : {"README", "list", "waiters", "status", "reply", "files/f", "list?pid=1",
                           "filelock?uid=1"}) {
    const auto node = world.walk(path)->node;
    for (const int flags : {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC}) {
      EXPECT_EQ(world.tree().open(node, flags, kRoot).error().value(), EACCES) << path;
    }
    EXPECT_TRUE(world.tree().open(node, O_RDONLY, kRoot).ok()) << path;
  }
  for (const auto* path : {"release", "filelock", "unfilelock"}) {
    const auto node = world.walk(path)->node;
    for (const int flags : {O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC | O_APPEND, O_RDONLY}) {
      EXPECT_TRUE(world.tree().open(node, flags, kAlice).ok()) << path;
    }
  }
}

TEST(ControlTree, WrongDirectionIsEbadf) {
  ControlWorld world;
  for (const auto* path : {"release", "filelock", "unfilelock"}) {
    const auto node = world.walk(path)->node;
    const auto to_write = world.tree().open(node, O_WRONLY, kAlice).value();
    EXPECT_EQ(world.tree().read(to_write, 0, 10, kAlice).error().value(), EBADF) << path;
    const auto to_read = world.tree().open(node, O_RDONLY, kAlice).value();
    EXPECT_EQ(world.tree().write(to_read, 0, "x", kAlice).error().value(), EBADF) << path;
  }
  const auto list = world.tree().open(world.walk("list")->node, O_RDONLY, kAlice).value();
  EXPECT_EQ(world.tree().write(list, 0, "x", kAlice).error().value(), EBADF);
  world.tree().release(list);
  EXPECT_EQ(world.tree().read(list, 0, 10, kAlice).error().value(), EBADF);
  EXPECT_EQ(world.tree().flush(list, kAlice).error().value(), EBADF);
  world.tree().release(list);
}

TEST(ControlTree, SetattrAllowsWhatRedirectionDoes) {
  ControlWorld world;
  control::Tree& tree = world.tree();
  const auto release = world.walk("release")->node;
  const auto list = world.walk("list")->node;
  using Change = control::Tree::Change;
  Change truncate;
  truncate.size = true;
  Change touch;
  touch.times = true;
  Change grow = truncate;
  grow.new_size = 1;
  Change chmod;
  chmod.mode = true;
  Change chown;
  chown.owner = true;
  for (const auto* path : {"release", "filelock", "unfilelock"}) {
    EXPECT_TRUE(tree.setattr(world.walk(path)->node, truncate, kAlice).ok()) << path;
    EXPECT_TRUE(tree.setattr(world.walk(path)->node, touch, kAlice).ok()) << path;
  }
  EXPECT_EQ(errno_of(tree.setattr(release, grow, kRoot)), EPERM);
  EXPECT_EQ(errno_of(tree.setattr(release, chmod, kRoot)), EPERM);
  EXPECT_EQ(errno_of(tree.setattr(release, chown, kRoot)), EPERM);
  for (const auto& change : {truncate, touch, grow, chmod, chown}) {
    EXPECT_EQ(errno_of(tree.setattr(list, change, kRoot)), EPERM);
    EXPECT_EQ(errno_of(tree.setattr(kTreeRoot, change, kRoot)), EPERM);
  }
}

// By the change time NFS clients know what they may go on believing, for all their users.
TEST(ControlTree, ChangeTimesTellUsersAndSecondsApart) {
  ControlWorld world;
  world.files.file("/f");
  const auto ctime = [&world](std::string_view path, const Caller& caller) {
    const auto t = world.walk(path, caller)->attr.st_ctim;
    return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
  };
  for (const auto* path : {"list", "list?pid=1", "files/f", "filelock", "reply", "status"}) {
    const auto mtime = world.walk(path)->attr.st_mtim;
    EXPECT_GE(ctime(path, kRoot), mtime.tv_sec * 1'000'000'000LL + mtime.tv_nsec) << path;
    EXPECT_NE(ctime(path, kAlice) % 1'000'000'000, ctime(path, kBob) % 1'000'000'000) << path;
    const auto earliest = realtime_ns() - 2'000'000'000;
    const auto told = ctime(path, kRoot);
    EXPECT_GE(told, earliest) << path;
    EXPECT_LE(told, realtime_ns() + 2'000'000) << path;
  }
  EXPECT_EQ(ctime("README", kRoot), ctime("README", kAlice));
  // What is read there is never what was written: no client may keep that.
  for (const auto* path : {"release", "filelock", "unfilelock"}) {
    EXPECT_NE(ctime(path, kAlice), ctime(path, kAlice)) << path;
  }
}

TEST(ControlTree, SizesAndTimesAreTruthful) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  world.locks.set_changed_at(1'700'000'000'500'000'000);
  for (const auto* path :
       {"README", "list", "waiters", "status", "reply", "release", "files/f", "list?pid=4711",
        "list?limit=1", "filelock", "unfilelock", "filelock?limit=1"}) {
    const auto attr = world.walk(path).value().attr;
    EXPECT_EQ(static_cast<std::size_t>(attr.st_size), world.cat(path).size()) << path;
  }
  EXPECT_EQ(world.walk("list")->attr.st_mtim.tv_sec, 1'700'000'000);
  EXPECT_EQ(world.walk("list")->attr.st_mtim.tv_nsec, 500'000'000);
  world.locks.add(grant(id, 1, range(0, 1), 0));
  world.locks.set_changed_at(1'700'000'001'000'000'000);
  for (const auto* path : {"list", "files/f", "list?pid=4711"}) {
    const auto attr = world.walk(path).value().attr;
    EXPECT_EQ(static_cast<std::size_t>(attr.st_size), world.cat(path).size()) << path;
    EXPECT_EQ(attr.st_mtim.tv_sec, 1'700'000'001) << path;
  }
  const auto before = world.walk("reply")->attr;
  const auto again = world.walk("reply")->attr;
  EXPECT_EQ(before.st_mtim.tv_nsec, again.st_mtim.tv_nsec) << "never now";
}

TEST(ControlTree, ChangesShowAtOnceAlsoRightAfterAChange) {
  ControlWorld world;
  const FileId id = world.files.file("/f");
  // The stamp stands still: the change came within the clock's resolution of a listing.
  const std::int64_t now = realtime_ns();
  world.locks.set_changed_at(now);
  EXPECT_EQ(world.json("list")["grants"].size(), 0U);
  world.locks.add(grant(id, 1, range(0, 1), 0));
  world.locks.set_changed_at(now);
  EXPECT_EQ(world.json("list")["grants"].size(), 1U);
}

TEST(ControlTree, OneCallersRenderingIsNotAnothers) {
  ControlWorld world;
  world.locks.add(grant(world.files.file("/f", 0, 0600), 1, range(0, 1), 0));
  EXPECT_EQ(world.json("list", kRoot)["grants"].size(), 1U);
  EXPECT_EQ(world.json("list", kAlice)["grants"].size(), 0U);
  EXPECT_NE(world.walk("list", kRoot)->attr.st_size, world.walk("list", kAlice)->attr.st_size);
}

// ---- files/

TEST(ControlMirror, ShowsTheMountsTree) {
  ControlWorld world;
  world.files.directory("/db", 1000, 0750);
  const FileId id = world.files.file("/db/app", 1000, 0600);
  world.files.file("/.locks");
  world.locks.add(grant(id, 1, range(0, 1), 1000));
  world.locks.add(grant(world.files.file("/other"), 2, range(0, 1), 1000));

  const auto dir = world.walk("files/db").value();
  EXPECT_EQ(dir.attr.st_mode, mode_t{S_IFDIR | 0750});
  EXPECT_EQ(dir.attr.st_uid, 1000U);
  EXPECT_EQ(dir.attr.st_mtim.tv_sec, 12345);
  EXPECT_EQ(dir.node & (kControlBit | kMirrorBit), kControlBit | kMirrorBit);

  const auto listing = world.json("files/db/app");
  ASSERT_EQ(listing["grants"].size(), 1U);
  EXPECT_EQ(listing["grants"][0]["path"], "/db/app");
  EXPECT_EQ(world.walk("files/db/app")->attr.st_mode, mode_t{S_IFREG | 0444});
  EXPECT_EQ(world.walk("files/db/app")->attr.st_uid, 1000U);

  EXPECT_EQ(errno_of(world.walk("files/db/app", kBob)), EACCES);
  EXPECT_EQ(errno_of(world.walk("files/none")), ENOENT);
  EXPECT_EQ(errno_of(world.walk("files/db/app/x")), ENOTDIR);
  EXPECT_EQ(errno_of(world.walk("files/.locks")), ENOENT) << "shadowed in the mount";
}

TEST(ControlMirror, ReferencesAreGivenBack) {
  ControlWorld world;
  world.files.directory("/db");
  world.files.file("/db/app");
  const auto files = world.walk("files").value();
  const auto db = world.walk("files/db").value();
  const auto app = world.tree().lookup(db.node, "app", kRoot).value();
  EXPECT_EQ(world.files.all_references(), 2);
  world.tree().forget(app.node, 1);
  world.tree().forget(db.node, 1);
  world.tree().forget(files.node, 2);
  EXPECT_EQ(world.files.all_references(), 0);
  world.locks.fail_lists(EIO);
  EXPECT_EQ(errno_of(world.tree().lookup(db.node, "app", kAlice)), EIO);
  EXPECT_EQ(world.files.all_references(), 0) << "a failed lookup references nothing";
}

TEST(ControlMirror, LinksAreShownAndNotFollowed) {
  ControlWorld world;
  world.files.make("/link", S_IFLNK | 0777, 0);
  world.files.make("/pipe", S_IFIFO | 0666, 0);
  const auto link = world.walk("files/link").value();
  EXPECT_EQ(link.attr.st_mode, mode_t{S_IFREG | 0444});
  EXPECT_EQ(link.attr.st_size, 0);
  EXPECT_EQ(world.tree().open(link.node, O_RDONLY, kRoot).error().value(), ELOOP);
  EXPECT_EQ(world.json("files/pipe")["grants"].size(), 0U);
}

TEST(ControlMirror, UnknownNodesAreStale) {
  ControlWorld world;
  const auto gone = kControlBit | kMirrorBit | 77777;
  EXPECT_EQ(errno_of(world.tree().getattr(gone, kRoot)), ESTALE);
  EXPECT_EQ(world.tree().open(gone, O_RDONLY, kRoot).error().value(), ESTALE);
  EXPECT_EQ(errno_of(world.tree().getattr(kControlBit | 999, kRoot)), ESTALE);
  EXPECT_EQ(world.tree().open(kControlBit | 999, O_RDONLY, kRoot).error().value(), ESTALE);
}

// ---- nodes of queries

TEST(ControlQueryNodes, AreSharedByNamesThatAskTheSame) {
  ControlWorld world;
  const auto a = world.walk("list?pid=1&uid=2")->node;
  EXPECT_EQ(world.walk("list?uid=2&pid=01")->node, a);
  EXPECT_NE(world.walk("waiters?pid=1&uid=2")->node, a);
  EXPECT_NE(world.walk("list?pid=1")->node, a);
  EXPECT_EQ(world.walk("list?")->node, world.walk("list")->node);
  EXPECT_EQ(world.walk("waiters?after=")->node, world.walk("waiters")->node);
}

TEST(ControlQueryNodes, AreBoundedAndAUserCannotKeepOthersOut) {
  ControlWorld world;
  const auto first = world.walk("list?pid=1")->node;
  const auto fh = world.tree().open(first, O_RDONLY, kRoot).value();
  const auto second = world.walk("list?pid=2")->node;
  for (std::uint32_t pid = 3; pid < 10'000; ++pid) {
    ASSERT_TRUE(world.walk("list?pid=" + std::to_string(pid), kAlice).ok());
  }
  EXPECT_TRUE(world.tree().getattr(first, kRoot).ok()) << "open: stays";
  EXPECT_EQ(errno_of(world.tree().getattr(second, kRoot)), ESTALE);
  EXPECT_EQ(world.walk("list?pid=2")->node, second) << "the same number again";
  world.tree().release(fh);
  // FORGETs for references of before do no harm.
  world.tree().forget(second, 100);
  EXPECT_TRUE(world.tree().getattr(second, kRoot).ok());
}

TEST(ControlQueryNodes, AllOpenIsEnfile) {
  control::QueryNodes nodes;
  control::Query query;
  for (std::uint32_t pid = 0; pid < control::QueryNodes::kMaxNodes; ++pid) {
    query.pid = pid;
    nodes.opened(nodes.look_up(control::ListKind::kGrants, query).value());
  }
  query.pid = 1'000'000;
  EXPECT_EQ(nodes.look_up(control::ListKind::kGrants, query).error().value(), ENFILE);
  query.pid = 5;
  const auto known = nodes.look_up(control::ListKind::kGrants, query).value();
  nodes.closed(known);
  query.pid = 1'000'000;
  EXPECT_TRUE(nodes.look_up(control::ListKind::kGrants, query).ok());
  EXPECT_FALSE(nodes.find(known).has_value());
  EXPECT_EQ(nodes.size(), control::QueryNodes::kMaxNodes);
}

TEST(ControlQueryNodes, TheForgottenGoFirst) {
  control::QueryNodes nodes;
  control::Query query;
  std::vector<std::uint64_t> numbers;
  for (std::uint32_t pid = 0; pid < control::QueryNodes::kMaxNodes; ++pid) {
    query.pid = pid;
    numbers.push_back(nodes.look_up(control::ListKind::kGrants, query).value());
  }
  nodes.forget(numbers[100], 1);
  query.pid = 1'000'000;
  ASSERT_TRUE(nodes.look_up(control::ListKind::kGrants, query).ok());
  EXPECT_FALSE(nodes.find(numbers[100]));
  EXPECT_TRUE(nodes.find(numbers[0]));
}

TEST(ControlOpenFiles, AreBoundedForEachUser) {
  ControlWorld world;
  const auto readme = world.walk("README")->node;
  std::vector<std::uint64_t> open;
  int err = 0;
  while (open.size() < 10'000) {
    const auto fh = world.tree().open(readme, O_RDONLY, kAlice);
    if (!fh) {
      err = fh.error().value();
      break;
    }
    open.push_back(*fh);
  }
  EXPECT_EQ(err, ENFILE);
  EXPECT_GE(open.size(), 64U);
  EXPECT_TRUE(world.tree().open(readme, O_RDONLY, kBob).ok());
  EXPECT_TRUE(world.tree().open(readme, O_RDONLY, kRoot).ok());
  world.tree().release(open.back());
  EXPECT_TRUE(world.tree().open(readme, O_RDONLY, kAlice).ok());
}

}  // namespace
}  // namespace latchfs::testing
