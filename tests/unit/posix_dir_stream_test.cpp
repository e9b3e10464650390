#include <algorithm>
#include <set>

#include "posix/dir_stream.h"
#include "posix_scratch.h"

namespace latchfs::posix {
namespace {

class DirStreamTest : public Scratch {
 protected:
  DirStream open_stream() {
    return DirStream{UniqueFd{::open(at(".").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)}};
  }
  // Everything from the position on.
  static std::vector<std::pair<std::string, off_t>> rest(DirStream& stream, std::size_t expected) {
    std::vector<std::pair<std::string, off_t>> out;
    for (;;) {
      const auto item = stream.peek(expected);
      if (!item || *item == nullptr) break;
      out.emplace_back((*item)->name, (*item)->next);
      stream.advance();
    }
    return out;
  }
};

TEST_F(DirStreamTest, GivesEachNameOnceWhateverTheBuffer) {
  for (int i = 0; i < 500; ++i) make_file("file-" + std::to_string(i));
  for (const std::size_t expected : {1, 1500, 4096, 1 << 20}) {
    DirStream stream = open_stream();
    std::multiset<std::string> names;
    for (const auto& [name, next] : rest(stream, expected)) names.insert(name);
    EXPECT_EQ(names.size(), 502u);
    EXPECT_EQ(names.count("."), 1u);
    EXPECT_EQ(names.count(".."), 1u);
    EXPECT_EQ(names.count("file-77"), 1u);
  }
}

TEST_F(DirStreamTest, GoesOnFromAnyCookie) {
  for (int i = 0; i < 100; ++i) make_file("f" + std::to_string(i));
  DirStream stream = open_stream();
  const auto all = rest(stream, 32768);
  for (const std::size_t from : {90, 3, 50, 0, 101}) {
    ASSERT_TRUE(stream.seek(all[from].second));
    const auto tail = rest(stream, 2000);
    ASSERT_EQ(tail.size(), all.size() - from - 1);
    EXPECT_TRUE(std::equal(tail.begin(), tail.end(), all.begin() + static_cast<long>(from) + 1));
  }
}

TEST_F(DirStreamTest, PeekStaysUntilAdvance) {
  make_file("a");
  DirStream stream = open_stream();
  const auto first = stream.peek(4096);
  ASSERT_TRUE(first && *first != nullptr);
  const std::string name = (*first)->name;
  const auto again = stream.peek(4096);
  ASSERT_TRUE(again && *again != nullptr);
  EXPECT_EQ((*again)->name, name);
}

TEST_F(DirStreamTest, RewoundItSeesWhatCameSince) {
  make_file("old");
  DirStream stream = open_stream();
  EXPECT_EQ(rest(stream, 4096).size(), 3u);
  make_file("new");
  ASSERT_TRUE(stream.seek(0));
  EXPECT_EQ(rest(stream, 4096).size(), 4u);
}

TEST_F(DirStreamTest, OfARemovedDirectoryIsAnErrorAsOnTheBackingFileSystem) {
  make_dir("gone");
  DirStream stream{UniqueFd{::open(at("gone").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)}};
  ASSERT_EQ(::rmdir(at("gone").c_str()), 0);
  EXPECT_EQ(stream.peek(4096).error(), errno_code(ENOENT));
}

}  // namespace
}  // namespace latchfs::posix
