#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "daemon/places.h"

namespace latchfs::daemon {
namespace {

namespace fs = std::filesystem;

class PlacesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "latchfs-places-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = fs::canonical(name);
    fs::create_directory(dir_ / "src");
    fs::create_directory(dir_ / "mnt");
    std::ofstream{dir_ / "file"} << "x";
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string refusal(const fs::path& source, const fs::path& mountpoint) {
    const auto got = open_places(source.string(), mountpoint.string());
    const auto* error = std::get_if<PlaceError>(&got);
    return error == nullptr ? "accepted" : error->message;
  }

  fs::path dir_;
};

TEST_F(PlacesTest, PinsTheSourceAndMakesPathsAbsolute) {
  fs::create_directory_symlink(dir_ / "src", dir_ / "link");
  auto got = open_places((dir_ / "link").string(), (dir_ / "mnt/../mnt").string());
  ASSERT_TRUE(std::holds_alternative<Places>(got));
  const Places& places = std::get<Places>(got);
  EXPECT_EQ(places.source_path, (dir_ / "src").string());
  EXPECT_EQ(places.mountpoint, (dir_ / "mnt").string());
  // The descriptor is the directory itself, whatever happens to its name.
  fs::rename(dir_ / "src", dir_ / "moved");
  struct stat by_fd {
  }, by_name{};
  ASSERT_EQ(::fstat(places.source.get(), &by_fd), 0);
  ASSERT_EQ(::stat((dir_ / "moved").c_str(), &by_name), 0);
  EXPECT_EQ(by_fd.st_ino, by_name.st_ino);
  EXPECT_NE(::fcntl(places.source.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(PlacesTest, NestedAndEqualPlacesAreAllowed) {
  fs::create_directory(dir_ / "src/inner");
  EXPECT_EQ(refusal(dir_ / "src", dir_ / "src"), "accepted");
  EXPECT_EQ(refusal(dir_ / "src", dir_ / "src/inner"), "accepted");
  EXPECT_EQ(refusal(dir_ / "src/inner", dir_ / "src"), "accepted");
}

TEST_F(PlacesTest, SaysWhichPlaceIsWrongAndWhy) {
  const std::string d = dir_.string();
  EXPECT_EQ(refusal(dir_ / "none", dir_ / "mnt"),
            "SOURCE '" + d + "/none': No such file or directory");
  EXPECT_EQ(refusal(dir_ / "file", dir_ / "mnt"), "SOURCE '" + d + "/file': Not a directory");
  EXPECT_EQ(refusal(dir_ / "src", dir_ / "none"),
            "MOUNTPOINT '" + d + "/none': No such file or directory");
  EXPECT_EQ(refusal(dir_ / "src", dir_ / "file"), "MOUNTPOINT '" + d + "/file': Not a directory");
}

}  // namespace
}  // namespace latchfs::daemon
