#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using nlohmann::json;

TableStats two_mounts() {
  TableStats stats;
  stats.table = "fs-7";
  stats.format = 3;
  stats.bytes_used = 1000;
  stats.bytes_committed = 4096;
  stats.bytes_max = 1 << 30;
  stats.files = 2;
  stats.owners = 3;
  stats.changed_at_ns = 1'795'253'400'123'456'000;
  stats.last_verify = "grant 5 of file 7:99 overlaps grant 6";
  stats.mounts = {{1, 100, 1'795'253'400'000'000'000, "/srv/data", "/mnt/data", true},
                  {2, 200, 1'795'253'400'000'000'000, "/srv/secret", "/mnt/secret", false}};
  return stats;
}

TEST(ControlStatus, SaysWhatThereIs) {
  ControlWorld world;
  world.locks.set_stats(two_mounts());
  const json status = world.json("status");
  EXPECT_EQ(status["version"], "0.1.0");
  EXPECT_EQ(status["table"], "fs-7");
  EXPECT_EQ(status["format"], 3);
  EXPECT_EQ(status["enforce"], "advisory");
  EXPECT_EQ(status["capacity"]["used"], 1000);
  EXPECT_EQ(status["capacity"]["committed"], 4096);
  EXPECT_EQ(status["capacity"]["max"], 1 << 30);
  EXPECT_EQ(status["counts"]["files"], 2);
  EXPECT_EQ(status["counts"]["mounts"], 2);
  EXPECT_EQ(status["changed_at"], "2026-11-21T09:30:00.123456Z");
  ASSERT_EQ(status["mounts"].size(), 2U);
  EXPECT_EQ(status["mounts"][1]["source"], "/srv/secret");
  EXPECT_EQ(status["mounts"][0]["started"], "2026-11-21T09:30:00.000000Z");
  EXPECT_EQ(status["last_verify"], "grant 5 of file 7:99 overlaps grant 6");
}

TEST(ControlStatus, NonAdminsSeeTheirMountOnly) {
  ControlWorld world;
  world.locks.set_stats(two_mounts());
  const json status = world.json("status", kAlice);
  ASSERT_EQ(status["mounts"].size(), 1U);
  EXPECT_EQ(status["mounts"][0]["mountpoint"], "/mnt/data");
  EXPECT_EQ(status["counts"]["mounts"], 2);
  EXPECT_EQ(status["last_verify"], "failed");
  EXPECT_EQ(world.cat("status", kAlice).find("secret"), std::string::npos);
}

TEST(ControlStatus, NoMountsAndMandatory) {
  auto options = ControlWorld::default_options();
  options.mandatory = true;
  options.serving = [] { return control::Serving{"dev", "passthrough"}; };
  ControlWorld world{options};
  const json status = world.json("status");
  EXPECT_EQ(status["enforce"], "mandatory");
  EXPECT_EQ(status["transport"], "dev");
  EXPECT_EQ(status["io"], "passthrough");
  EXPECT_EQ(status["mounts"].size(), 0U);
}

TEST(ControlReadme, IsAScreenfulAboutThisMount) {
  auto options = ControlWorld::default_options();
  options.mountpoint = "/mnt/it's here/";
  options.name = ".ctl";
  ControlWorld world{options};
  const std::string text = world.cat("README", kAlice);
  EXPECT_NE(text.find(R"(L='/mnt/it'\''s here/.ctl')"), std::string::npos);
  EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 40);
  std::size_t begin = 0;
  while (begin < text.size()) {
    const auto end = text.find('\n', begin);
    EXPECT_LE(end - begin, 95U) << text.substr(begin, end - begin);
    begin = end + 1;
  }
  EXPECT_NE(text.find("\"$L/filelock\""), std::string::npos);
  EXPECT_EQ(text.find("events"), std::string::npos) << "not there yet";
}

}  // namespace
}  // namespace latchfs::testing
