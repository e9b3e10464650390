// The daemon dies at each fault point of each operation, and of the recovery from that; afterwards
// the file is locked with all that belongs to it, or not at all.
#include <sys/mman.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>

#include "base/fault_point.h"
#include "filelock_fixture.h"
#include "support/sanitized.h"

namespace latchfs::filelock {
namespace {

// Shared with the child.
struct Passages {
  int count;
  int deadly;
  char at[64];
};
Passages* g_passages = nullptr;

void count_passage(const char* name) noexcept {
  if (++g_passages->count != g_passages->deadly) return;
  std::strncpy(g_passages->at, name, sizeof g_passages->at - 1);
  ::kill(::getpid(), SIGKILL);
}

struct Ended {
  bool killed{};
  int exit_code{};
  std::string at;
};

// fn in a child that dies at the N-th fault point it comes to, from 1.
template <class Fn>
Ended kill_at(int passage, Fn&& fn) {
  if (g_passages == nullptr) {
    g_passages = static_cast<Passages*>(
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  }
  *g_passages = {0, passage, {}};
  const pid_t child = ::fork();
  if (child == 0) {
    hook_faults(count_passage);
    ::_exit(fn());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return {WIFSIGNALED(status), WIFEXITED(status) ? WEXITSTATUS(status) : -1, g_passages->at};
}

const std::set<std::string> kAlone{"f"};
const std::set<std::string> kLockedNames{".f.asp-bak", ".f.asp-lck", "f"};
constexpr int kMostPassages = 200;

class FilelockCrash : public FilelockGroundTest {
 protected:
  enum class By { kRecover, kBegin };

  void settle(By by) {
    if (by == By::kRecover) {
      const Recovered recovered = desk().recover(dir());
      EXPECT_EQ(recovered.failed + recovered.left + recovered.held, 0u);
    } else {
      EXPECT_DONE(with_session("f", [](Session& s) { return s.status(); }));
    }
    EXPECT_TRUE(journals().empty());
    // Again, and nothing is there to do.
    const Recovered again = desk().recover(dir());
    EXPECT_EQ(again.settled + again.failed + again.left + again.held, 0u);
  }

  // Kills `act` at every point after `prepare`, and settling it at every point too if `twice`.
  // Returns how many points there were.
  template <class Prepare, class Act, class Check>
  int at_every_point(bool twice, Prepare&& prepare, Act&& act, Check&& check) {
    int points = 0;
    for (int passage = 1; passage < kMostPassages; ++passage) {
      for (const By by : {By::kRecover, By::kBegin}) {
        for (int second = 1; second < kMostPassages; ++second) {
          prepare();
          const Ended first = kill_at(passage, act);
          SCOPED_TRACE(fmt::format("died at {} ({}), settled by {}, which died at {}", passage,
                                   first.at, by == By::kBegin ? "begin" : "recover", second));
          if (!first.killed) {
            EXPECT_EQ(first.exit_code, 0);
            check(true);
            return points;
          }
          points = passage;
          bool whole = true;
          if (twice) {
            whole = !kill_at(second, [&] {
                       if (by == By::kRecover) {
                         desk().recover(dir());
                       } else {
                         with_session("f", [](Session& s) { return s.status(); });
                       }
                       return 0;
                     }).killed;
          }
          settle(by);
          check(false);
          clean();
          if (testing::Test::HasFailure()) return points;
          if (whole) break;
        }
      }
    }
    ADD_FAILURE() << "no end of fault points";
    return points;
  }

  void clean() {
    for (const std::string& name : names()) std::filesystem::remove_all(path(name));
    for (const std::string& name : journals()) std::filesystem::remove(state_path() + "/" + name);
  }
  // Journals as of another device.
  void renumber() {
    for (const std::string& name : journals()) {
      const std::string old = state_path() + "/" + name;
      const UniqueFd fd{::open(old.c_str(), O_RDWR | O_CLOEXEC)};
      char text[4096];
      const ssize_t size = ::read(fd.get(), text, sizeof text);
      auto entry = parse_entry({text, static_cast<std::size_t>(size)});
      if (!entry) continue;
      entry->file.dev ^= 0x700;
      entry->dir.dev ^= 0x700;
      const std::string changed = entry_text(*entry);
      ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
      ASSERT_GT(::pwrite(fd.get(), changed.data(), changed.size(), 0), 0);
      std::filesystem::rename(old, state_path() + "/" + journal_name(entry->file));
    }
  }
  // Locked, with all that belongs to it.
  void expect_locked() {
    EXPECT_EQ(names(), kLockedNames);
    const Status now = status("f");
    EXPECT_EQ(now.condition, Condition::kLocked) << now.words;
    EXPECT_EQ(seen(".f.asp-bak"), before_);
  }
  void expect_unlocked() {
    EXPECT_EQ(names(), kAlone);
    EXPECT_FALSE(mark("f"));
  }
  static int code(const Failure& failure) { return failure.code ? 1 : 0; }
  // Two deaths in a row take their time.
  bool twice() const { return where() == "tmpfs" && !test::kSanitized; }

  std::string before_;
  std::string spoiled_;
};

TEST_P(FilelockCrash, Applying) {
  bool was_locked = false;
  bool was_unlocked = false;
  const int points = at_every_point(
      twice(),
      [&] {
        make_rich("f");
        before_ = seen("f");
      },
      [&] { return code(apply("f")); },
      [&](bool done) {
        EXPECT_EQ(seen("f"), before_);
        if (mark("f")) {
          was_locked = true;
          expect_locked();
        } else {
          EXPECT_FALSE(done);
          was_unlocked = true;
          expect_unlocked();
        }
      });
  EXPECT_GT(points, 15);
  EXPECT_TRUE(was_locked && was_unlocked);
}

TEST_P(FilelockCrash, ApplyingWhatFails) {
  at_every_point(
      twice(),
      [&] {
        make_rich("f");
        before_ = seen("f");
        ASSERT_EQ(::mkdir(path(".f.asp-lck").c_str(), 0755), 0);
      },
      [&] { return code(apply("f")) == 1 ? 0 : 1; },
      [&](bool) {
        EXPECT_EQ(seen("f"), before_);
        EXPECT_FALSE(mark("f"));
        EXPECT_EQ(names(), (std::set<std::string>{".f.asp-lck", "f"}));
      });
}

TEST_P(FilelockCrash, Removing) {
  bool was_locked = false;
  bool was_unlocked = false;
  at_every_point(
      twice(),
      [&] {
        make_rich("f");
        before_ = seen("f");
        EXPECT_DONE(apply("f"));
        spoil("f");
        spoiled_ = seen("f");
      },
      [&] { return code(remove("f")); },
      [&](bool done) {
        EXPECT_EQ(seen("f"), spoiled_);
        if (mark("f")) {
          EXPECT_FALSE(done);
          was_locked = true;
          expect_locked();
        } else {
          was_unlocked = true;
          expect_unlocked();
        }
      });
  EXPECT_TRUE(was_locked && was_unlocked);
}

TEST_P(FilelockCrash, Reverting) {
  bool was_locked = false;
  bool was_unlocked = false;
  const int points = at_every_point(
      twice(),
      [&] {
        make_rich("f");
        before_ = seen("f");
        EXPECT_DONE(apply("f"));
        spoil("f");
        spoiled_ = seen("f");
      },
      [&] { return code(revert("f")); },
      [&](bool done) {
        if (mark("f")) {
          EXPECT_FALSE(done);
          was_locked = true;
          expect_locked();
          // Reserving may have allocated what was a hole.
          EXPECT_EQ(seen("f").substr(0, spoiled_.find(" data")),
                    spoiled_.substr(0, spoiled_.find(" data")));
        } else {
          was_unlocked = true;
          expect_unlocked();
          EXPECT_EQ(seen("f"), before_);
        }
      });
  EXPECT_GT(points, 15);
  EXPECT_TRUE(was_locked && was_unlocked);
}

TEST_P(FilelockCrash, TellingTagsAnew) {
  at_every_point(
      twice(),
      [&] {
        make_rich("f");
        before_ = seen("f");
        EXPECT_DONE(apply("f"));
      },
      [&] { return code(retag("f", info(R"({"new":"1"})"))); },
      [&](bool done) {
        expect_locked();
        const std::string tags = status("f").info->tags;
        EXPECT_TRUE(tags == R"({"new":"1"})" || (!done && tags == R"({"ticket":"42"})")) << tags;
      });
}

// The journals are lost, with all of /run say: the marks tell enough.
TEST_P(FilelockCrash, ApplyingAndTheJournalIsLost) {
  for (int passage = 1; passage < kMostPassages; ++passage) {
    make_rich("f");
    before_ = seen("f");
    const Ended first = kill_at(passage, [&] { return code(apply("f")); });
    SCOPED_TRACE(fmt::format("died at {} ({})", passage, first.at));
    std::filesystem::remove_all(state_path());
    if (!mark("f")) {
      EXPECT_DONE(apply("f"));
    }
    expect_locked();
    clean();
    if (!first.killed || testing::Test::HasFailure()) break;
  }
}

TEST_P(FilelockCrash, RevertingAndTheJournalIsLost) {
  for (int passage = 1; passage < kMostPassages; ++passage) {
    make_rich("f");
    before_ = seen("f");
    EXPECT_DONE(apply("f"));
    spoil("f");
    const Ended first = kill_at(passage, [&] { return code(revert("f")); });
    SCOPED_TRACE(fmt::format("died at {} ({})", passage, first.at));
    std::filesystem::remove_all(state_path());
    const Condition now = status("f").condition;
    if (now == Condition::kReverting) {
      EXPECT_REFUSED(retag("f", info()), EBUSY);
      EXPECT_DONE(remove("f"));  // completes it: a plain remove would leave it half done
      EXPECT_EQ(seen("f"), before_);
    } else if (now == Condition::kLocked) {
      EXPECT_DONE(revert("f"));
      EXPECT_EQ(seen("f"), before_);
    } else {
      EXPECT_TRUE(now == Condition::kUnlocked || now == Condition::kOrphan);
      EXPECT_EQ(seen("f"), before_);
    }
    clean();
    if (!first.killed || testing::Test::HasFailure()) break;
  }
}

// Between the death and the recovery things move on.
TEST_P(FilelockCrash, TheDirectoryIsMovedAndTheFileRenamed) {
  for (int passage = 1; passage < kMostPassages; ++passage) {
    ASSERT_EQ(::mkdir(path("d").c_str(), 0755), 0);
    const UniqueFd inner{::open(path("d").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
    write_file("d/f", "old");
    const UniqueFd file = path_fd("d/f");
    const Ended first = kill_at(passage, [&] {
      auto session = desk().begin({inner.get(), "f", file.get()}, in_ms(1000));
      return session && session->apply(info(), me()) ? 0 : 1;
    });
    SCOPED_TRACE(fmt::format("died at {} ({})", passage, first.at));
    ASSERT_EQ(::rename(path("d").c_str(), path("e").c_str()), 0);
    ASSERT_EQ(::rename(path("e/f").c_str(), path("e/g").c_str()), 0);
    const Recovered recovered = desk().recover(dir());
    EXPECT_EQ(recovered.failed + recovered.left + recovered.held, 0u);
    EXPECT_TRUE(journals().empty());
    if (mark("e/g")) {
      EXPECT_EQ(names_in(path("e")), (std::set<std::string>{".f.asp-bak", ".f.asp-lck", "g"}));
    } else {
      EXPECT_EQ(names_in(path("e")), std::set<std::string>{"g"});
    }
    clean();
    if (!first.killed || testing::Test::HasFailure()) break;
  }
}

// After a reboot the device may have another number: what carries the lock's id is settled all the
// same, and a journal that nothing matches waits.
TEST_P(FilelockCrash, TheDeviceHasAnotherNumber) {
  int settled = 0;
  int left = 0;
  for (int passage = 1; passage < kMostPassages; ++passage) {
    make_rich("f");
    before_ = seen("f");
    const bool reverting = passage % 2 == 0;
    if (reverting) {
      EXPECT_DONE(apply("f"));
      spoil("f");
    }
    const Ended first =
        kill_at(passage / 2 + 1, [&] { return code(reverting ? revert("f") : apply("f")); });
    SCOPED_TRACE(fmt::format("{} died at {}", reverting ? "revert" : "apply", first.at));
    renumber();
    const Recovered recovered = desk().recover(dir());
    EXPECT_EQ(recovered.failed + recovered.held, 0u);
    settled += static_cast<int>(recovered.settled);
    left += static_cast<int>(recovered.left);
    EXPECT_EQ(journals().size(), recovered.left);
    if (mark("f")) {
      expect_locked();
    } else {
      expect_unlocked();
      EXPECT_EQ(seen("f"), before_);
    }
    clean();
    if ((!first.killed && reverting) || testing::Test::HasFailure()) break;
  }
  EXPECT_GT(settled, 0);
  EXPECT_GT(left, 0);
}

TEST_P(FilelockCrash, TheFileIsRemovedMeanwhile) {
  for (int passage = 1; passage < kMostPassages; ++passage) {
    write_file("f", "old");
    const Ended first = kill_at(passage, [&] { return code(apply("f")); });
    SCOPED_TRACE(fmt::format("died at {} ({})", passage, first.at));
    const bool locked = mark("f").has_value();
    ASSERT_EQ(::unlink(path("f").c_str()), 0);
    (void)desk().recover(dir());
    EXPECT_TRUE(journals().empty());
    if (!locked) {
      EXPECT_EQ(names(), std::set<std::string>{});
    }
    clean();
    if (!first.killed || testing::Test::HasFailure()) break;
  }
}

INSTANTIATE_TEST_SUITE_P(On, FilelockCrash, testing::Values("default", "tmpfs", "xfs"),
                         [](const auto& param) { return std::string{param.param}; });

}  // namespace
}  // namespace latchfs::filelock
