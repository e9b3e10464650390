// exports(5), and what is off about a mount's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "daemon/export_check.h"

namespace latchfs::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// "PATH client:option,option client:" of each line.
std::string told(const std::vector<Export>& exports) {
  std::string text;
  for (const Export& e : exports) {
    text += '[' + e.path;
    for (const ExportClient& c : e.clients) {
      text += ' ' + c.name + ':';
      for (const std::string& o : c.options) text += o + ';';
    }
    text += ']';
  }
  return text;
}
std::string parsed(std::string_view text) { return told(parse_exports(text)); }

TEST(Exports, Lines) {
  EXPECT_EQ(parsed(""), "");
  EXPECT_EQ(parsed("/a *(rw,fsid=1)"), "[/a *:rw;fsid=1;]");
  EXPECT_EQ(parsed("/a *(rw)\n\n/b  10.0.0.0/8(ro)\t@group\n"),
            "[/a *:rw;][/b 10.0.0.0/8:ro; @group:]");
  EXPECT_EQ(parsed("/a (ro)"), "[/a :ro;]");
  EXPECT_EQ(parsed("/a host (ro)"), "[/a host: :ro;]") << "a blank makes two clients";
  EXPECT_EQ(parsed("/a"), "[/a :]") << "everybody";
  EXPECT_EQ(parsed("not/absolute *(rw)\n/b x"), "[/b x:]");
}

TEST(Exports, CommentsAndContinuedLines) {
  EXPECT_EQ(parsed("# /a *(rw)\n/b *(rw) # and /c\n"), "[/b *:rw;]");
  EXPECT_EQ(parsed("/a \\\n  x(rw) \\\n  y(ro)\n/b z"), "[/a x:rw; y:ro;][/b z:]");
  EXPECT_EQ(parsed("# ends with \\\n/b x"), "[/b x:]");
  EXPECT_EQ(parsed("/a x(rw)\\\n\n/b y"), "[/a x:rw;][/b y:]");
  EXPECT_EQ(parsed("/a x(rw)\r\n/b y"), "[/a x:rw;][/b y:]");
}

TEST(Exports, QuotesAndEscapes) {
  EXPECT_EQ(parsed("\"/with space\" x(rw)"), "[/with space x:rw;]");
  EXPECT_EQ(parsed("/with\\040space x"), "[/with space x:]");
  EXPECT_EQ(parsed("/a\\0x x"), "[/a\\0x x:]") << "no escape";
  EXPECT_EQ(parsed("/hash\"#\"in x"), "[/hash#in x:]");
  EXPECT_EQ(parsed("\"/never closed x(rw)\n/b y"), "[/never closed x(rw) :][/b y:]");
  EXPECT_EQ(parsed("/a\\"), "[/a\\ :]");
}

TEST(Exports, DefaultOptions) {
  EXPECT_EQ(parsed("/a -fsid=1,mp x(rw) y -ro z"), "[/a x:fsid=1;mp;rw; y:fsid=1;mp; z:ro;]");
  EXPECT_EQ(parsed("/a -fsid=1"), "[/a :fsid=1;]");
  EXPECT_EQ(parsed("/a x(,,rw,,)"), "[/a x:rw;]");
  EXPECT_EQ(parsed("/a x(rw"), "[/a x:rw;]") << "not closed";
}

// Whatever it is given, it ends, and every path is absolute.
TEST(Exports, AnyBytes) {
  const std::string alphabet = "/ab \\\n\t\"#()-,=0177\r\0x";
  for (unsigned seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::minstd_rand random{seed};
    std::string text(random() % 200, '\0');
    for (char& c : text) {
      c = seed % 4 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
    }
    for (const Export& e : parse_exports(text)) {
      EXPECT_EQ(e.path.front(), '/');
      EXPECT_FALSE(e.clients.empty());
    }
    static_cast<void>(export_warnings(parse_exports(text), {"/a", true, true}));
  }
  EXPECT_THAT(parse_exports(std::string(std::size_t{3} << 20, ' ') + "/a x"), IsEmpty());
}

std::vector<std::string> warned(std::string_view text, bool leases = false,
                                bool mandatory = false) {
  return export_warnings(parse_exports(text), {"/srv/shared", mandatory, leases});
}

TEST(ExportWarnings, NothingIsSaidOfWhatIsRight) {
  EXPECT_THAT(warned("/srv/shared *(rw,fsid=1,mp,no_subtree_check)"), IsEmpty());
  EXPECT_THAT(warned("/srv/shared -fsid=1,mountpoint=/srv/shared a(rw) b(ro)"), IsEmpty());
  EXPECT_THAT(warned("/srv/shared/ *(fsid=1,mp)"), IsEmpty());
  EXPECT_THAT(warned("/srv/shared *(fsid=1,mp,subtree_check,no_subtree_check)"), IsEmpty());
}

TEST(ExportWarnings, NothingIsSaidOfOthersExports) {
  EXPECT_THAT(warned("/srv/other *(rw)\n/srv/shared2 *(rw)", true, true), IsEmpty());
  EXPECT_THAT(warned("", true, true), IsEmpty());
}

TEST(ExportWarnings, WhatIsOff) {
  EXPECT_THAT(warned("/srv/shared *(rw,mp)"), ElementsAre(HasSubstr("has no fsid=")));
  EXPECT_THAT(warned("/srv/shared *(rw,fsid=1)"), ElementsAre(HasSubstr("has no 'mp'")));
  EXPECT_THAT(warned("/srv/shared *(fsid=1,mp,subtree_check)"),
              ElementsAre(HasSubstr("subtree_check")));
  EXPECT_THAT(warned("/srv/shared/below *(fsid=1)"),
              ElementsAre(HasSubstr("/srv/shared/below to *")));
  EXPECT_THAT(warned("/srv/shared *(fsid=1,mp)", true), ElementsAre(HasSubstr("fs.leases-enable")));
  EXPECT_THAT(warned("/srv/shared *(fsid=1,mp)", false, true),
              ElementsAre(HasSubstr("enforce=advisory")));
  EXPECT_THAT(warned("/srv/shared a(fsid=1,mp) b(mp)"),
              ElementsAre(HasSubstr("to b has no fsid=")));
  EXPECT_THAT(warned("/srv/shared\n/srv/shared"),
              ElementsAre(HasSubstr("to everybody has no fsid="), HasSubstr("has no 'mp'")))
      << "once each";
  EXPECT_THAT(warned("/srv/shared *(fsidious,mpx)").size(), 2u) << "options are whole words";
}

TEST(ExportWarnings, AnExportAbove) {
  EXPECT_THAT(warned("/srv *(rw,crossmnt)", true),
              ElementsAre(HasSubstr("export /srv/shared itself")));
  EXPECT_THAT(warned("/ *(rw)"), ElementsAre(HasSubstr("export /srv/shared itself")));
  EXPECT_THAT(warned("/srv *(rw)\n/srv/shared *(fsid=1,mp)"), IsEmpty());
}

TEST(ExportWarnings, NamesForgeNoLines) {
  for (const std::string& line : warned("\"/srv/shared/a\\012b\" *(mp)")) {
    EXPECT_EQ(line.find('\n'), std::string::npos);
  }
}

class ExportFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/exports.XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    top_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(top_); }
  void put(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path{top_ + '/' + name}.parent_path());
    std::ofstream{top_ + '/' + name} << text;
  }
  std::string top_;
};

TEST_F(ExportFiles, AreThoseOfExportfs) {
  EXPECT_EQ(told(read_exports(top_)), "") << "none is there";
  put("exports", "/a x\n");
  put("exports.d/2.exports", "/c x");
  put("exports.d/1.exports", "/b x");
  put("exports.d/other", "/no x");
  put("exports.d/.hidden.exports", "/no x");
  EXPECT_EQ(told(read_exports(top_)), "[/a x:][/b x:][/c x:]");
}

TEST_F(ExportFiles, ThatWouldHangAreLeftOut) {
  ASSERT_EQ(::mkfifo((top_ + "/exports").c_str(), 0600), 0);
  std::filesystem::create_directories(top_ + "/exports.d/dir.exports");
  EXPECT_EQ(told(read_exports(top_)), "");
}

TEST_F(ExportFiles, Leases) {
  EXPECT_FALSE(leases_enabled(top_)) << "no such kernel";
  put("sys/fs/leases-enable", "1\n");
  EXPECT_TRUE(leases_enabled(top_));
  put("sys/fs/leases-enable", "0\n");
  EXPECT_FALSE(leases_enabled(top_));
}

}  // namespace
}  // namespace latchfs::daemon
