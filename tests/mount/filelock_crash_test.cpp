// A daemon is killed at every step of a filelock, a new set of tags, an unlock and a revert. Then
// the file is either not locked, with nothing beside it, or fully locked; a revert is either not
// begun or complete; and nobody is held up for good.
//
// Three times over: mounted anew; mounted anew with the state directory lost, as after a loss of
// power; and with another mount of the table that was there all the time and settles it. Under a
// sanitizer every fourth point is taken, another one of them each day.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "support/filelock_state.h"
#include "support/sanitized.h"

namespace latchfs::test {
namespace {

namespace stdfs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

enum class Op : std::uint8_t { kLock, kRetag, kUnlock, kRevert };

// Where a daemon is killed: at the n-th passage.
struct Point {
  const char* name;
  int passage{1};
};

// In the order in which each passes them.
const std::vector<Point>& points_of(Op op) {
  static const std::vector<Point> kLock{
      {"shm.transition_published"}, {"shm.transition_begun"},       {"filelock.begun"},
      {"fuse.filelock_wait"},       {"fuse.filelock_quiet"},        {"filelock.journal.write"},
      {"filelock.journal.written"}, {"filelock.apply.begin"},       {"filelock.backup.nameless"},
      {"filelock.backup.content"},  {"filelock.backup.attributes"}, {"filelock.backup.synced"},
      {"filelock.apply.backup"},    {"filelock.metadata.nameless"}, {"filelock.metadata.written"},
      {"filelock.metadata.synced"}, {"filelock.apply.metadata"},    {"filelock.apply.commit"},
      {"filelock.apply.marked"},    {"filelock.journal.clear"},     {"filelock.journal.cleared"}};
  static const std::vector<Point> kRetag{
      {"shm.transition_begun"},       {"filelock.begun"},
      {"filelock.journal.write"},     {"filelock.journal.written"},
      {"filelock.metadata.nameless"}, {"filelock.metadata.written"},
      {"filelock.metadata.synced"},   {"filelock.metadata.beside"},
      {"filelock.retag.replaced"},    {"filelock.journal.clear"},
      {"filelock.journal.cleared"}};
  static const std::vector<Point> kUnlock{
      {"shm.transition_begun"},     {"filelock.begun"},          {"fuse.filelock_wait"},
      {"fuse.unfilelock_quiet"},    {"filelock.journal.write"},  {"filelock.journal.written"},
      {"filelock.remove.unmarked"}, {"filelock.remove.synced"},  {"filelock.remove.side", 1},
      {"filelock.remove.side", 2},  {"filelock.remove.side", 3}, {"filelock.journal.clear"},
      {"filelock.journal.cleared"}};
  static const std::vector<Point> kRevert{
      {"shm.transition_begun"},       {"filelock.begun"},
      {"fuse.filelock_wait"},         {"fuse.unfilelock_quiet"},
      {"filelock.journal.write"},     {"filelock.journal.sync"},
      {"filelock.journal.written"},   {"filelock.metadata.nameless"},
      {"filelock.metadata.written"},  {"filelock.metadata.synced"},
      {"filelock.metadata.beside"},   {"filelock.revert.metadata"},
      {"filelock.revert.commit"},     {"filelock.revert.committed"},
      {"filelock.revert.content"},    {"filelock.revert.owner"},
      {"filelock.revert.attributes"}, {"filelock.revert.synced"},
      {"filelock.remove.unmarked"},   {"filelock.remove.synced"},
      {"filelock.remove.side", 1},    {"filelock.remove.side", 2},
      {"filelock.remove.side", 3},    {"filelock.journal.clear"},
      {"filelock.journal.cleared"}};
  switch (op) {
    case Op::kLock:
      return kLock;
    case Op::kRetag:
      return kRetag;
    case Op::kUnlock:
      return kUnlock;
    case Op::kRevert:
      break;
  }
  return kRevert;
}

// A daemon dies at the first, and who settles that at the second.
struct Chain {
  Op op;
  Point first, second;
};
const std::vector<Chain> kChains{
    {Op::kLock, {"filelock.apply.commit"}, {"filelock.settle"}},
    {Op::kLock, {"filelock.apply.commit"}, {"filelock.undo.mark"}},
    {Op::kLock, {"filelock.apply.commit"}, {"filelock.undo.metadata"}},
    {Op::kLock, {"filelock.apply.commit"}, {"filelock.undo.backup"}},
    {Op::kUnlock, {"filelock.remove.unmarked"}, {"filelock.remove.side"}},
    {Op::kRevert, {"filelock.revert.committed"}, {"filelock.revert.content"}},
    {Op::kRevert, {"filelock.revert.attributes"}, {"filelock.remove.unmarked"}}};

// Which of them, in this build and today.
bool taken(std::size_t at) {
  static const auto today = static_cast<std::size_t>(std::time(nullptr) / 86'400);
  return !kSanitized || (at + today) % 8 == 0;
}

// Daemons that start while it lives are killed there.
class Armed {
 public:
  explicit Armed(const Point& point) {
    const std::string spec = std::string{point.name} + "=kill@" + std::to_string(point.passage);
    ::setenv("LATCHFS_FAULT", spec.c_str(), 1);
  }
  ~Armed() { ::unsetenv("LATCHFS_FAULT"); }
  Armed(const Armed&) = delete;
  Armed& operator=(const Armed&) = delete;
};

// Whether it has died of SIGKILL, without being waited for.
bool was_killed(pid_t pid) {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == pid && info.si_code == CLD_KILLED && info.si_status == SIGKILL;
}
bool until(seconds most, const std::function<bool()>& fn) {
  const auto deadline = Clock::now() + most;
  while (!fn()) {
    if (Clock::now() > deadline) return false;
    ::usleep(10'000);
  }
  return true;
}

// The journals of a table: gone with it.
class StateOf {
 public:
  explicit StateOf(const std::string& table) : path_{"/var/lib/latchfs/" + table} {}
  ~StateOf() {
    std::error_code ignored;
    stdfs::remove_all(path_, ignored);
  }
  StateOf(const StateOf&) = delete;
  StateOf& operator=(const StateOf&) = delete;
  [[nodiscard]] Names journals() const { return stdfs::exists(path_) ? names_in(path_) : Names{}; }
  void lose() const {
    for (const std::string& name : journals()) stdfs::remove(path_ + "/" + name);
  }

 private:
  std::string path_;
};

std::string request(Op op, const std::string& path = "/f") {
  const std::string head = R"({"paths": [{"path": ")" + path + "\"";
  switch (op) {
    case Op::kLock:
      return head + R"(, "tags": {"n": "1"}}]})";
    case Op::kRetag:
      return head + R"(, "tags": {"n": "2"}}]})";
    case Op::kUnlock:
      return head + "}]}";
    case Op::kRevert:
      break;
  }
  return head + R"(, "revert": true}]})";
}
Answer request_by(const MountFixture& mount, Op op, const std::string& path = "/f") {
  const bool locks = op == Op::kLock || op == Op::kRetag;
  return ask_as(kLocker, mount.mount(), locks ? "filelock" : "unfilelock", request(op, path));
}

// A directory with a file in it, as an operation is to find it.
struct Subject {
  std::string dir;
  FileLook old;  // when it was, or will be, locked
  FileLook now;  // when the operation begins
  [[nodiscard]] std::string file() const { return dir + "/f"; }
  [[nodiscard]] std::string backup() const { return dir + "/.f.asp-bak"; }
  [[nodiscard]] bool marked() const {
    return ::getxattr(file().c_str(), "security.latchfs.filelock", nullptr, 0) > 0;
  }
};

// top: SOURCE of the mount. name: of a new directory there.
Subject make_subject(const MountFixture& mount, const std::string& top, const std::string& name,
                     Op op, const std::string& text) {
  Subject s;
  s.dir = top + "/" + name;
  stdfs::create_directory(s.dir);
  ::chmod(s.dir.c_str(), 0777);
  std::ofstream{s.file()} << text;
  ::setxattr(s.file().c_str(), "user.kept", "1", 1, 0);
  EXPECT_EQ(::chown(s.file().c_str(), kOther, kOther), 0);
  EXPECT_EQ(::chmod(s.file().c_str(), 0666), 0);
  s.old = s.now = look_at(s.file());
  if (op == Op::kLock) return s;
  const Answer locked = request_by(mount, Op::kLock, "/" + name + "/f");
  EXPECT_EQ(locked.err, 0) << locked.reply;
  const std::string path = mount.mount() + "/" + name + "/f";
  EXPECT_EQ(as(kLocker, [&] { return write_to(path, "changed"); }), 0);
  EXPECT_EQ(::setxattr(path.c_str(), "user.new", "2", 1, 0), 0);
  s.now = look_at(s.file());
  return s;
}

// What is wrong with it after the death, "" for nothing. Changes nothing. path: by a mount.
std::string judge(const Subject& s, Op op, const std::string& path) {
  const Names names = names_in(s.dir);
  const FileLook look = look_at(s.file());
  std::string all;
  for (const std::string& name : names) all += name + " ";
  if (!s.marked()) {
    if (names != Names{"f"}) return "not locked, and beside it: " + all;
    if (op == Op::kRetag) return "not locked any more";
    const FileLook& wanted = op == Op::kRevert ? s.old : s.now;
    return look == wanted ? "" : "not locked, and another content: " + difference(look, wanted);
  }
  if (names != Names{"f", ".f.asp-bak", ".f.asp-lck"}) return "locked, with " + all;
  if (look != s.now) return "locked, and another content: " + difference(look, s.now);
  const FileLook saved = look_at(s.backup());
  if (saved != s.old) return "locked, and another backup: " + difference(saved, s.old);
  const std::string lock = path.substr(0, path.rfind('/')) + "/.f.asp-lck";
  const auto json = nlohmann::json::parse(content(lock), nullptr, false);
  if (!json.is_object() || json.value("state", "") != "locked")
    return "the metadata: " + json.dump();
  const std::string n = json.at("tags").value("n", "");
  if (n != "1" && !(op == Op::kRetag && n == "2")) return "the tags: " + json.dump();
  const int write = as(kOther, [&] { return write_to(path, "x"); });
  if (write != EACCES) return "locked, and another user's write gives " + std::to_string(write);
  const int read = as(kLocker, [&] { return ::access(lock.c_str(), R_OK) != 0 ? errno : 0; });
  return read == 0 ? "" : "he who locked it cannot read the metadata";
}

// He unlocks it, whatever came of it, and others write to it.
void expect_it_can_be_unlocked(const Subject& s, const MountFixture& mount,
                               const std::string& path = "/f") {
  const bool marked = s.marked();
  const FileLook before = look_at(s.file());
  const Answer answer = request_by(mount, Op::kUnlock, path);
  EXPECT_EQ(answer.err, marked ? 0 : ENOENT) << answer.reply;
  EXPECT_EQ(look_at(s.file()), before) << difference(look_at(s.file()), before);
  EXPECT_EQ(names_in(s.dir), Names{"f"});
  EXPECT_TRUE(until(seconds{60}, [&] {
    return as(kOther, [&] { return write_to(mount.mount() + path, "x"); }) == 0;
  }));
}

std::string name_of_case(Op op, const Point& point) {
  static constexpr std::array<const char*, 4> kNames{"lock", "retag", "unlock", "revert"};
  return std::string{kNames.at(static_cast<std::size_t>(op))} + " killed at " + point.name + "@" +
         std::to_string(point.passage);
}
const std::string kText = "old content " + std::string(20'000, 'o');

class FilelockCrash : public ::testing::TestWithParam<Op> {
 protected:
  // The subject of each point, in a directory of its own.
  std::vector<Subject> make_subjects(std::size_t many) const {
    MountFixture::Options options;
    options.source = top_.path();
    const MountFixture mount{options};
    std::vector<Subject> all;
    for (std::size_t i = 0; i < many; ++i) {
      all.push_back(make_subject(mount, top_.path(), "c" + std::to_string(i), GetParam(), kText));
    }
    return all;
  }
  // A mount of that directory alone, with a table of its own, whose daemon will die.
  static std::unique_ptr<MountFixture> mount_of(const Subject& s) {
    MountFixture::Options options;
    options.source = s.dir;
    return std::make_unique<MountFixture>(options);
  }
  static void expect_death(const MountFixture& mount, Op op) {
    EXPECT_NE(request_by(mount, op).err, 0);
    EXPECT_TRUE(until(seconds{60}, [&] { return was_killed(mount.daemon()); }))
        << "it does not come there";
  }
  const TempDir top_;
};

TEST_P(FilelockCrash, ARemountFindsItNotLockedOrFullyLocked) {
  const auto& points = points_of(GetParam());
  const auto subjects = make_subjects(points.size());
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (!taken(i)) continue;
    SCOPED_TRACE(name_of_case(GetParam(), points[i]));
    std::unique_ptr<MountFixture> dying;
    {
      const Armed armed{points[i]};
      dying = mount_of(subjects[i]);
    }
    const StateOf state{dying->table()};
    expect_death(*dying, GetParam());
    dying->detach();
    const MountFixture again{dying->another()};
    EXPECT_EQ(judge(subjects[i], GetParam(), again.mount() + "/f"), "");
    EXPECT_EQ(state.journals(), Names{});
    expect_it_can_be_unlocked(subjects[i], again);
  }
}

// The marks tell what the journal would have told, to who comes to the file next.
TEST_P(FilelockCrash, TheNextRequestMakesItWholeWhereTheStateDirectoryIsLost) {
  const auto& points = points_of(GetParam());
  const auto subjects = make_subjects(points.size());
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (!taken(i + 1)) continue;
    const Subject& s = subjects[i];
    SCOPED_TRACE(name_of_case(GetParam(), points[i]));
    std::unique_ptr<MountFixture> dying;
    {
      const Armed armed{points[i]};
      dying = mount_of(s);
    }
    const StateOf state{dying->table()};
    expect_death(*dying, GetParam());
    dying->detach();
    state.lose();
    const MountFixture again{dying->another()};
    if (i % 2 == 0) {
      const Answer locked = request_by(again, Op::kRetag);
      // What is being reverted is to be reverted first.
      const bool reverting = GetParam() == Op::kRevert && locked.err == EBUSY;
      EXPECT_TRUE(locked.err == 0 || reverting) << locked.reply;
      EXPECT_EQ(names_in(s.dir), (Names{"f", ".f.asp-bak", ".f.asp-lck"}));
      EXPECT_EQ(as(kOther, [&] { return write_to(again.mount() + "/f", "x"); }), EACCES);
      const FileLook saved = look_at(s.backup());
      EXPECT_TRUE(saved == s.old || saved == s.now) << difference(saved, s.old);
    }
    const Answer unlocked = request_by(again, Op::kUnlock);
    EXPECT_TRUE(unlocked.err == 0 || unlocked.err == ENOENT) << unlocked.reply;
    EXPECT_FALSE(s.marked());
    EXPECT_EQ(names_in(s.dir), Names{"f"});
    const FileLook look = look_at(s.file());
    EXPECT_TRUE(look == s.now || (GetParam() == Op::kRevert && look == s.old))
        << difference(look, s.now);
    EXPECT_EQ(as(kOther, [&] { return write_to(again.mount() + "/f", "x"); }), 0);
  }
}

// Two daemons of one table at each directory: one dies, the other sees to it. Many at once, since
// that takes a second.
TEST_P(FilelockCrash, AnotherMountSettlesItAndNobodyIsHeldUp) {
  struct Pair {
    std::unique_ptr<MountFixture> alive, dying;
    std::unique_ptr<StateOf> state;
    std::size_t at{};
  };
  const auto& points = points_of(GetParam());
  const auto subjects = make_subjects(points.size());
  std::vector<Pair> pairs;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (!taken(i + 2)) continue;
    Pair pair;
    pair.at = i;
    pair.alive = mount_of(subjects[i]);
    pair.state = std::make_unique<StateOf>(pair.alive->table());
    std::ofstream{subjects[i].dir + "/free"};
    ::chmod((subjects[i].dir + "/free").c_str(), 0666);
    const Armed armed{points[i]};
    pair.dying = std::make_unique<MountFixture>(pair.alive->another());
    pairs.push_back(std::move(pair));
  }
  for (Pair& pair : pairs) {
    SCOPED_TRACE(name_of_case(GetParam(), points[pair.at]));
    expect_death(*pair.dying, GetParam());
    pair.dying->detach();
    const std::string free = pair.alive->mount() + "/free";
    EXPECT_EQ(as(kOther, [&] { return write_to(free, "x"); }), 0) << "another file";
    ::unlink((subjects[pair.at].dir + "/free").c_str());
  }
  for (Pair& pair : pairs) {
    const Subject& s = subjects[pair.at];
    SCOPED_TRACE(name_of_case(GetParam(), points[pair.at]));
    std::string wrong;
    // (Not before it is settled: a file that ceases to be locked while it is judged can be
    // written.)
    EXPECT_TRUE(until(seconds{60}, [&] {
      wrong = "it is not settled";
      if (pair.state->journals().empty()) wrong = judge(s, GetParam(), pair.alive->mount() + "/f");
      return wrong.empty();
    })) << wrong;
    expect_it_can_be_unlocked(s, *pair.alive);
    pair.alive.reset();  // (before its journals)
  }
}

std::string name_of_op(const ::testing::TestParamInfo<Op>& info) {
  return std::array{"Lock", "Retag", "Unlock", "Revert"}.at(static_cast<std::size_t>(info.param));
}
INSTANTIATE_TEST_SUITE_P(, FilelockCrash,
                         ::testing::Values(Op::kLock, Op::kRetag, Op::kUnlock, Op::kRevert),
                         name_of_op);

TEST(FilelockCrashChain, WhoSettlesItDiesTooAndTheThirdDoesIt) {
  struct Three {
    const Chain* chain;
    std::unique_ptr<TempDir> top;
    Subject subject;
    std::unique_ptr<MountFixture> first, second;
    std::unique_ptr<StateOf> state;
  };
  std::vector<Three> all;
  for (std::size_t i = 0; i < kChains.size(); ++i) {
    if (!taken(i)) continue;
    const Chain& chain = kChains[i];
    Three three{&chain, std::make_unique<TempDir>(), {}, nullptr, nullptr, nullptr};
    MountFixture::Options options;
    options.source = three.top->path();
    {
      const MountFixture mount{options};
      three.subject = make_subject(mount, three.top->path(), "d", chain.op, kText);
    }
    options.source = three.subject.dir;
    {
      const Armed armed{chain.second};
      three.second = std::make_unique<MountFixture>(options);
    }
    three.state = std::make_unique<StateOf>(three.second->table());
    {
      const Armed armed{chain.first};
      three.first = std::make_unique<MountFixture>(three.second->another());
    }
    EXPECT_NE(request_by(*three.first, chain.op).err, 0);
    all.push_back(std::move(three));
  }
  for (Three& three : all) {
    SCOPED_TRACE(name_of_case(three.chain->op, three.chain->first) + ", then at " +
                 three.chain->second.name);
    EXPECT_TRUE(until(seconds{60}, [&] { return was_killed(three.first->daemon()); }));
    EXPECT_TRUE(until(seconds{60}, [&] { return was_killed(three.second->daemon()); }))
        << "it does not come there";
    three.first->detach();
    three.second->detach();
    const MountFixture third{three.second->another()};
    EXPECT_EQ(judge(three.subject, three.chain->op, third.mount() + "/f"), "");
    expect_it_can_be_unlocked(three.subject, third);
  }
}

// One request, two files: what was done stays done.
TEST(FilelockCrashTwo, TheFirstOfTwoPathsStaysLocked) {
  const TempDir top;
  MountFixture::Options options;
  options.source = top.path();
  for (const char* name : {"filelock.begun", "filelock.apply.backup", "filelock.apply.marked",
                           "filelock.journal.cleared", "shm.transition_begun"}) {
    const Point point{name, 2};
    SCOPED_TRACE(name_of_case(Op::kLock, point));
    const Armed armed{point};
    MountFixture dying{options};
    ::unsetenv("LATCHFS_FAULT");
    const StateOf state{dying.table()};
    const std::string dirs[2] = {std::string{name} + "-1", std::string{name} + "-2"};
    const Subject subjects[2] = {make_subject(dying, top.path(), dirs[0], Op::kLock, kText),
                                 make_subject(dying, top.path(), dirs[1], Op::kLock, kText)};
    const std::string both = R"({"paths": [{"path": "/)" + dirs[0] +
                             R"(/f", "tags": {"n": "1"}}, {"path": "/)" + dirs[1] +
                             R"(/f", "tags": {"n": "1"}}]})";
    EXPECT_NE(ask_as(kLocker, dying.mount(), "filelock", both).err, 0);
    EXPECT_TRUE(until(seconds{60}, [&] { return was_killed(dying.daemon()); }));
    dying.detach();
    const MountFixture again{dying.another()};
    EXPECT_TRUE(subjects[0].marked());
    for (int i : {0, 1}) {
      const std::string path = "/" + dirs[i] + "/f";
      EXPECT_EQ(judge(subjects[i], Op::kLock, again.mount() + path), "");
      expect_it_can_be_unlocked(subjects[i], again, path);
    }
  }
}

// Killed while it copies: to the backup, and back.
class FilelockCrashCopy : public ::testing::Test {
 protected:
  static constexpr std::size_t kBig = std::size_t{64} << 20;
  static std::string big(char first) {
    std::string text(kBig, first);
    for (std::size_t at = 0; at < kBig; at += 4096)
      text[at] = static_cast<char>('a' + at / 4096 % 26);
    return text;
  }
  // It has a nameless file open that is partly written.
  static bool is_copying(pid_t daemon) {
    std::error_code ignored;
    const std::string fds = "/proc/" + std::to_string(daemon) + "/fd";
    for (const auto& entry : stdfs::directory_iterator{fds, ignored}) {
      struct stat st {};
      if (::stat(entry.path().c_str(), &st) != 0 || !S_ISREG(st.st_mode) || st.st_nlink != 0)
        continue;
      if (st.st_size > 0 && st.st_size < static_cast<off_t>(kBig)) return true;
    }
    return false;
  }
  // A process that asks.
  static pid_t ask_meanwhile(const MountFixture& mount, Op op) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(request_by(mount, op, "/d/f").err);
    return child;
  }
  const TempDir top_;
};

TEST_F(FilelockCrashCopy, OfTheBackup) {
  MountFixture::Options options;
  options.source = top_.path();
  MountFixture dying{options};
  const StateOf state{dying.table()};
  const Subject s = make_subject(dying, top_.path(), "d", Op::kLock, big('L'));
  const pid_t asker = ask_meanwhile(dying, Op::kLock);
  const auto is_over = [asker] {
    siginfo_t info{};
    const auto id = static_cast<id_t>(asker);
    return ::waitid(P_PID, id, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
  };
  const bool met = until(seconds{60}, [&] { return is_copying(dying.daemon()) || is_over(); });
  dying.kill_daemon();
  ::waitpid(asker, nullptr, 0);
  EXPECT_TRUE(met);
  dying.detach();
  const MountFixture again{dying.another()};
  EXPECT_EQ(judge(s, Op::kLock, again.mount() + "/d/f"), "");
  expect_it_can_be_unlocked(s, again, "/d/f");
}

TEST_F(FilelockCrashCopy, Back) {
  MountFixture::Options options;
  options.source = top_.path();
  for (const useconds_t after : {1'000U, 8'000U, 30'000U}) {
    SCOPED_TRACE(after);
    const TempDir place;
    const std::string gate = place.path() + "/gate";
    std::ofstream{gate};
    ::setenv("LATCHFS_FAULT", ("filelock.revert.committed=hold:" + gate).c_str(), 1);
    MountFixture dying{options};
    ::unsetenv("LATCHFS_FAULT");
    const StateOf state{dying.table()};
    const std::string text = big('R');
    const Subject s = make_subject(dying, top_.path(), "d", Op::kRevert, text);
    const pid_t asker = ask_meanwhile(dying, Op::kRevert);
    EXPECT_TRUE(until(seconds{60}, [&] { return stdfs::file_size(gate) != 0; }));
    ::unlink(gate.c_str());
    ::usleep(after);
    dying.kill_daemon();
    ::waitpid(asker, nullptr, 0);
    dying.detach();
    const MountFixture again{dying.another()};
    EXPECT_FALSE(s.marked()) << "it was committed";
    EXPECT_EQ(judge(s, Op::kRevert, again.mount() + "/d/f"), "");
    expect_it_can_be_unlocked(s, again, "/d/f");
    stdfs::remove_all(s.dir);
  }
}

TEST(FilelockCrashPoints, AreAllOfThemThatThereAre) {
  std::set<std::string> listed;
  for (const Op op : {Op::kLock, Op::kRetag, Op::kUnlock, Op::kRevert}) {
    for (const Point& point : points_of(op)) listed.insert(point.name);
  }
  for (const Chain& chain : kChains) listed.insert({chain.first.name, chain.second.name});
  if (!stdfs::exists(LATCHFS_SOURCES)) GTEST_SKIP() << "no sources here";
  const std::regex passage{
      R"re(fault_point\("((filelock\.|fuse\.(un)?filelock|shm\.transition)[^"]*)"\))re"};
  std::set<std::string> there;
  for (const auto& entry : stdfs::recursive_directory_iterator{LATCHFS_SOURCES}) {
    if (!entry.is_regular_file()) continue;
    const std::string text = content(entry.path());
    for (std::sregex_iterator it{text.begin(), text.end(), passage}, end; it != end; ++it) {
      there.insert((*it)[1]);
    }
  }
  EXPECT_EQ(listed, there);
}

}  // namespace
}  // namespace latchfs::test
