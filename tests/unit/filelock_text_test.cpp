// What is written into marks, journals and metadata, and what is made of anything else.
#include <gtest/gtest.h>

#include "filelock/journal.h"
#include "filelock/mark.h"
#include "filelock/metadata.h"
#include "filelock/side_files.h"

namespace latchfs::filelock {
namespace {

Mark some_mark(const std::string& name = "f") {
  Mark mark;
  mark.kind = MarkKind::kLock;
  mark.id = *LockId::fresh();
  mark.uid = 1000;
  mark.locked_at_ns = -5;
  mark.ino = 4711;
  mark.name = name;
  return mark;
}

TEST(FilelockMark, ComesBackAsItWasWritten) {
  for (const std::string& name :
       {std::string{"f"}, std::string{"a b\n"}, std::string{"\xff\x01 "}, std::string(255, 'n')}) {
    const Mark mark = some_mark(name);
    const Mark again = parse_mark(mark_text(mark));
    EXPECT_EQ(again.kind, MarkKind::kLock);
    EXPECT_EQ(again.id, mark.id);
    EXPECT_EQ(again.uid, mark.uid);
    EXPECT_EQ(again.locked_at_ns, mark.locked_at_ns);
    EXPECT_EQ(again.ino, mark.ino);
    EXPECT_EQ(again.name, name);
  }
}

TEST(FilelockMark, AnythingElseIsDamaged) {
  const std::string good = mark_text(some_mark());
  std::vector<std::string> bad{
      "",
      " ",
      "2" + good.substr(1),
      good.substr(0, good.size() - 1),
      good + "/",
      good + std::string(1, '\0'),
      std::string(400, 'x'),
      "1 lock 0123 1 1 1 f",
      "1 LOCK 00000000000000000000000000000000 1 1 1 f",
      "1 lock 0000000000000000000000000000000G 1 1 1 f",
      "1 lock 00000000000000000000000000000000 01 1 1 f",
      "1 lock 00000000000000000000000000000000 +1 1 1 f",
      "1 lock 00000000000000000000000000000000 4294967296 1 1 f",
      "1 lock 00000000000000000000000000000000 1 1 -1 f",
      "1 lock 00000000000000000000000000000000 1 1 1 ..",
      "1 lock 00000000000000000000000000000000 1 1 1 " + std::string(256, 'n')};
  for (const std::string& text : bad) {
    EXPECT_EQ(parse_mark(text).kind, MarkKind::kDamaged) << text;
  }
  EXPECT_EQ(parse_mark("1 side 00000000000000000000000000000000 1 1 1 f").kind, MarkKind::kSide);
}

TEST(FilelockMark, NamesOfMarksAreKnown) {
  EXPECT_TRUE(is_mark_name("security.latchfs.filelock"));
  EXPECT_TRUE(is_mark_name("user.latchfs.filelock"));
  EXPECT_FALSE(is_mark_name("user.latchfs.filelocks"));
  EXPECT_FALSE(is_mark_name(""));
}

TEST(FilelockNames, OfSideFiles) {
  EXPECT_TRUE(is_side_name(".x.asp-bak"));
  EXPECT_TRUE(is_side_name(".x.asp-lck"));
  EXPECT_FALSE(is_side_name("..asp-bak") && is_side_name(".asp-bak"));
  EXPECT_FALSE(is_side_name(".asp-lck"));
  EXPECT_FALSE(is_side_name("x.asp-bak"));
  EXPECT_FALSE(is_side_name(".x.asp-bak2"));
  const auto names = side_names("a b");
  ASSERT_TRUE(names);
  EXPECT_EQ(names->backup, ".a b.asp-bak");
  EXPECT_EQ(names->metadata, ".a b.asp-lck");
  EXPECT_TRUE(side_names(std::string(246, 'n')));
  const auto long_name = side_names(std::string(247, 'n'));
  EXPECT_EQ(long_name.error(), errno_code(ENAMETOOLONG));
  EXPECT_NE(long_name.failure().words.find("246"), std::string::npos);
  for (const std::string& name : {std::string{}, std::string{"."}, std::string{".."},
                                  std::string{"a/b"}, std::string("a\0b", 3)}) {
    EXPECT_EQ(side_names(name).error(), errno_code(EINVAL));
  }
}

TEST(FilelockJournal, ComesBackAsItWasWritten) {
  JournalEntry entry;
  entry.op = Op::kRevert;
  entry.committed = true;
  entry.id = *LockId::fresh();
  entry.file = {0xfe00, 123};
  entry.file_handle = *posix::FileHandle::parse("0000000101020304");
  entry.dir = {0xfe00, 2};
  entry.name = "a b\n\xff";
  const std::string text = entry_text(entry);
  const auto again = parse_entry(text);
  ASSERT_TRUE(again);
  EXPECT_EQ(entry_text(*again), text);
  EXPECT_EQ(again->file_handle, entry.file_handle);
  EXPECT_TRUE(again->dir_handle.empty());
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(parse_entry(text.substr(0, size))) << size;
  }
  EXPECT_FALSE(parse_entry(text + "x"));
  EXPECT_TRUE(is_journal_name(journal_name(entry.file)));
  EXPECT_FALSE(is_journal_name("FE00-7b"));
  EXPECT_FALSE(is_journal_name("fe00-"));
  EXPECT_FALSE(is_journal_name(".."));
}

Metadata some_metadata() {
  Metadata metadata;
  metadata.id = *LockId::fresh();
  metadata.name = "f";
  metadata.path = "/a/f";
  metadata.user = "alice";
  metadata.uid = 1000;
  metadata.locked_at = "2026-11-21T09:30:00.123456Z";
  metadata.tags = R"({"ticket":"42","deep":{"a":[1,2.5,null]}})";
  metadata.file.mtime = {-7, 5};
  metadata.file.mode = 0104755;
  return metadata;
}

TEST(FilelockMetadata, ComesBackAsItWasWritten) {
  const Metadata metadata = some_metadata();
  const auto text = metadata_text(metadata);
  ASSERT_TRUE(text) << text.failure().words;
  const auto again = parse_metadata(*text);
  ASSERT_TRUE(again) << again.failure().words;
  EXPECT_EQ(*metadata_text(*again), *text);
  EXPECT_EQ(again->id, metadata.id);
  EXPECT_EQ(again->file.mtime.tv_sec, -7);
  EXPECT_EQ(again->file.mtime.tv_nsec, 5);
  EXPECT_EQ(again->file.mode, metadata.file.mode);
}

TEST(FilelockMetadata, TagsAreAnObjectAndNotTooMuch) {
  Metadata metadata = some_metadata();
  for (const std::string tags : {"", "[]", "\"x\"", "{", "{}{}", "{\"a\":\"\xff\"}"}) {
    metadata.tags = tags;
    EXPECT_EQ(metadata_text(metadata).error(), errno_code(EINVAL)) << tags;
  }
  metadata.tags = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_EQ(metadata_text(metadata).error(), errno_code(EINVAL));
  metadata.tags = "{\"a\":\"" + std::string(kMostMetadata, 'x') + "\"}";
  EXPECT_EQ(metadata_text(metadata).error(), errno_code(EMSGSIZE));
  metadata.tags = "{}";
  metadata.path = "/no-utf8-\xff";
  EXPECT_TRUE(metadata_text(metadata));
}

TEST(FilelockMetadata, DamageIsTold) {
  const std::string good = *metadata_text(some_metadata());
  for (std::size_t size = 0; size + 1 < good.size(); size += 7) {
    EXPECT_EQ(parse_metadata(good.substr(0, size)).error(), errno_code(EBADMSG)) << size;
  }
  const auto with = [&](const std::string& what, const std::string& instead) {
    std::string text = good;
    const auto at = text.find(what);
    EXPECT_NE(at, std::string::npos) << what;
    return text.replace(at, what.size(), instead);
  };
  for (const std::string& text :
       {with("\"version\":1", "\"version\":2"), with("\"version\":1", "\"version\":\"1\""),
        with("\"locked\"", "\"open\""), with("\"uid\":1000", "\"uid\":-1"), with("\"alice\"", "7"),
        with("\"lock_id\":\"", "\"lock_id\":\"0"), std::string(5000, '['), std::string{"null"},
        good + std::string(1, '\0')}) {
    const auto parsed = parse_metadata(text);
    EXPECT_EQ(parsed.error(), errno_code(EBADMSG)) << text.substr(0, 200);
  }
}

}  // namespace
}  // namespace latchfs::filelock
