// Requests written to `filelock` and `unfilelock`, and the replies to them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "control/filelock_run.h"
#include "support/control_world.h"

namespace latchfs::testing {
namespace {

using nlohmann::json;
using Names = std::vector<std::string>;

class ControlFilelock : public ::testing::Test {
 protected:
  ControlFilelock() {
    a = world.files.file("/a", 1000);
    b = world.files.file("/b", 1000);
    roots = world.files.file("/roots", 0);
  }
  int lock(std::string_view text, const Caller& caller = kAlice) {
    return world.echo_to("filelock", text, caller);
  }
  int unlock(std::string_view text, const Caller& caller = kAlice) {
    return world.echo_to("unfilelock", text, caller);
  }
  json reply(const Caller& caller = kAlice) { return world.json("reply", caller); }
  std::string words(const Caller& caller = kAlice) {
    return reply(caller).at("error").at("user_message");
  }
  std::uint64_t open(const char* name, int flags, const Caller& caller = kAlice) {
    return world.tree().open(world.walk(name)->node, flags, caller).value();
  }
  int write(std::uint64_t fh, std::string_view text, const Caller& caller = kAlice) {
    // write(2): where the last one ended that was not refused.
    const auto written = world.tree().write(fh, offsets[fh], text, caller);
    if (written) offsets[fh] += text.size();
    EXPECT_EQ(written.ok() ? *written : text.size(), text.size());
    return written.error().value();
  }
  json read(std::uint64_t fh, std::uint64_t offset = 0) {
    return parse_json(world.tree().read(fh, offset, 1 << 20, kAlice).value());
  }

  std::map<std::uint64_t, std::uint64_t> offsets;  // by file
  ControlWorld world;
  FileId a, b, roots;
};

// ---- the seed's own samples, hosts and paths aside

constexpr std::string_view kSeedFilelock = R"({
    "paths" : [ 
        {
            "path" : "/path/to/file1",
            "tags" : {"tag" : "tag_string"}
        },
        {
            "path" : "/path/to/file2",
            "tags" : {"tag" : "tag_string"
        }
    ]
}
)";
constexpr std::string_view kSeedFilelockMended = R"({
    "paths" : [ 
        {
            "path" : "/path/to/file1",
            "tags" : {"tag" : "tag_string"}
        },
        {
            "path" : "/path/to/file2",
            "tags" : {"tag" : "tag_string"}
        }
    ]
}
)";
// The sample's reply, with the braces that it lacks.
constexpr std::string_view kSeedFilelockReply = R"({
    "paths" : [ 
        {
            "path" : "/path/to/file1",
            "tags" : {"tag" : "tag_string"}
        },
        {
            "path" : "/path/to/file2",
            "error" : 
                {
                    "code" : "404",
                    "reason" : "Not Found",
                    "user_message" : "No such file or directory"
                }
        }
    ]
}
)";
constexpr std::string_view kSeedUnfilelock = R"({
    "paths" : [ 
        {
            "path" : "/path/to/file1",
            "revert" : true
        },
        {
            "path" : "/path/to/file2",
            "revert" : false
        }
    ]
}
)";
constexpr std::string_view kSeedUnfilelockReply = R"({
    "paths" : [ 
        {
            "path" : "/path/to/file1"
        },
        {
            "path" : "/path/to/file2",
            "error" : 
                {
                    "code" : "404",
                    "reason" : "Not Found",
                    "user_message" : "No such file or directory"
                }
        }
    ]
}
)";

TEST_F(ControlFilelock, TheSeedsSamples) {
  world.files.directory("/path");
  world.files.directory("/path/to");
  world.files.file("/path/to/file1", 1000);
  EXPECT_EQ(lock(kSeedFilelock), EINVAL) << "it lacks a brace";
  EXPECT_TRUE(world.filelocks.applied.empty());
  EXPECT_EQ(reply()["paths"], json::array());
  EXPECT_EQ(reply()["error"]["code"], "400");

  EXPECT_EQ(lock(kSeedFilelockMended), ENOENT);
  EXPECT_EQ(world.filelocks.locked(), Names{"/path/to/file1"});
  EXPECT_EQ(reply(), parse_json(kSeedFilelockReply));

  EXPECT_EQ(unlock(kSeedUnfilelock), ENOENT);
  EXPECT_EQ(world.filelocks.locked(), Names{});
  ASSERT_EQ(world.filelocks.removed.size(), 2U);
  EXPECT_TRUE(world.filelocks.removed[0].revert);
  EXPECT_FALSE(world.filelocks.removed[1].revert);
  EXPECT_EQ(reply(), parse_json(kSeedUnfilelockReply));
}

// ---- JSON

TEST_F(ControlFilelock, TheReplyIsOneObjectALineInOrder) {
  EXPECT_EQ(lock(R"({"paths": [{"path": "/a", "tags": {"ticket": "42", "b": "\"é"}},)"
                 R"( {"path": "/missing"}, {"tags": {}, "path": "/b"}, {"path": "/roots"}]})"),
            ENOENT);
  EXPECT_EQ(world.cat("reply", kAlice),
            "{\"paths\": [\n"
            "{\"path\": \"/a\", \"tags\": {\"ticket\": \"42\", \"b\": \"\\\"é\"}},\n"
            "{\"path\": \"/missing\", \"error\": {\"code\": \"404\", \"reason\": \"Not Found\", "
            "\"user_message\": \"No such file or directory\"}},\n"
            "{\"path\": \"/b\", \"tags\": {}},\n"
            "{\"path\": \"/roots\", \"error\": {\"code\": \"403\", \"reason\": \"Forbidden\", "
            "\"user_message\": \"Permission denied\"}}\n"
            "]}\n");
  EXPECT_EQ(world.filelocks.locked(), (Names{"/a", "/b"}));
  const auto& calls = world.filelocks.applied;
  EXPECT_EQ(calls[0].tags, (control::Tags{{"ticket", "42"}, {"b", "\"é"}}));
  EXPECT_EQ(calls[1].tags, std::nullopt);
  EXPECT_EQ(calls[2].tags, control::Tags{});
  EXPECT_EQ(calls[0].uid, 1000U);
  EXPECT_FALSE(calls[0].admin);
  EXPECT_EQ(lock("/a\n", kRoot), EBUSY);
  EXPECT_TRUE(world.filelocks.applied.back().admin);
}

TEST_F(ControlFilelock, EachFailureHasItsCode) {
  struct Case {
    int err;
    const char* code;
    const char* reason;
  };
  for (const Case& c :
       {Case{ENOENT, "404", "Not Found"}, Case{EACCES, "403", "Forbidden"},
        Case{EPERM, "403", "Forbidden"}, Case{EBUSY, "409", "Conflict"},
        Case{EINVAL, "400", "Bad Request"}, Case{ELOOP, "400", "Bad Request"},
        Case{ENOTDIR, "400", "Bad Request"}, Case{EISDIR, "400", "Bad Request"},
        Case{ENAMETOOLONG, "400", "Bad Request"}, Case{ENOSPC, "507", "Insufficient Storage"},
        Case{EDQUOT, "507", "Insufficient Storage"}, Case{EOPNOTSUPP, "501", "Not Implemented"},
        Case{EROFS, "500", "Internal Server Error"}, Case{EIO, "500", "Internal Server Error"}}) {
    world.filelocks.failing["/a"] = {c.err, "held by \"nobody\""};
    EXPECT_EQ(lock("/a\n"), c.err);
    const json error = reply()["paths"][0]["error"];
    EXPECT_EQ(error["code"], c.code);
    EXPECT_EQ(error["reason"], c.reason);
    EXPECT_EQ(error["user_message"], "held by \"nobody\"");
  }
  world.filelocks.failing["/a"] = {0, ""};
  EXPECT_EQ(lock("/a\n"), EIO) << "a failure without an errno";
}

TEST_F(ControlFilelock, OnePathsExceptionStopsNoOther) {
  world.filelocks.on_apply = [](std::string_view path) {
    if (path == "/a") throw std::bad_alloc{};
    if (path == "/missing") throw std::runtime_error{"odd"};
  };
  EXPECT_EQ(lock("/a\n/missing\n/b\n"), ENOMEM);
  EXPECT_EQ(world.filelocks.locked(), Names{"/b"});
  EXPECT_EQ(reply()["paths"][0]["error"]["code"], "507");
  EXPECT_EQ(reply()["paths"][1]["error"]["code"], "500");
  EXPECT_FALSE(reply()["paths"][2].contains("error"));
}

TEST_F(ControlFilelock, APathMayComeTwiceAndWithTheMountPoint) {
  EXPECT_EQ(lock(R"({"paths": [{"path": "/a"}, {"path": "/mnt/data/b"}, {"path": "/a"}]})"), 0);
  EXPECT_EQ(world.filelocks.locked(), (Names{"/a", "/b"}));
  EXPECT_EQ(reply()["paths"][1]["path"], "/mnt/data/b") << "as it was written";
  EXPECT_EQ(unlock("/mnt/data/a\n"), 0);
  EXPECT_EQ(unlock("/mnt/data/missing\n"), ENOENT);
  EXPECT_EQ(unlock("/mnt/database/b\n"), ENOENT);
  EXPECT_EQ(world.filelocks.locked(), Names{"/b"});
  world.files.directory("/mnt");
  world.files.directory("/mnt/data");
  world.files.file("/mnt/data/b", 1000);
  EXPECT_EQ(lock("/mnt/data/b\n"), 0);
  EXPECT_EQ(world.filelocks.locked(), (Names{"/b", "/mnt/data/b"})) << "what is there comes first";
  EXPECT_EQ(unlock("/mnt/data/b\n"), 0);
  EXPECT_EQ(unlock("/mnt/data/b\n"), ENOENT);
  EXPECT_EQ(world.filelocks.locked(), Names{"/b"}) << "not another file instead";
}

TEST_F(ControlFilelock, AnyPieces) {
  const std::string text = R"({"paths": [{"path": "/a", "tags": {"}": "]\""}}]})";
  for (std::size_t piece = 1; piece <= text.size(); ++piece) {
    const auto fh = open("filelock", O_RDWR);
    for (std::size_t at = 0; at < text.size(); at += piece) {
      ASSERT_EQ(write(fh, text.substr(at, piece)), 0) << piece;
    }
    EXPECT_EQ(read(fh)["paths"][0]["tags"]["}"], "]\"") << piece;
    world.tree().release(fh);
  }
  EXPECT_EQ(world.filelocks.applied.size(), text.size());
}

// ---- hostile input: nothing is done, and the words name the place

TEST_F(ControlFilelock, MalformedRequestsSayWhatIsWrongAndWhere) {
  const std::string good = R"({"path": "/a"})";
  const auto batch = [](const std::string& items) { return "{\"paths\": [" + items + "]}"; };
  std::string many = R"({"path": "/a", "tags": {)";
  for (int i = 0; i < 65; ++i) {
    many += (i == 0 ? "\"" : ", \"") + std::to_string(i) + "\": \"\"";
  }
  many += "}}";
  struct Case {
    std::string text;
    std::string why;
  };
  const std::vector<Case> cases{
      {"{}", "paths is missing"},
      {R"({"paths": []})", "paths is empty"},
      {R"({"paths": {}})", "paths is an object, not an array"},
      {R"({"paths": "/a"})", "paths is a string, not an array"},
      {R"({"paths": null})", "paths is null, not an array"},
      {R"({"path": "/a"})", "\"path\" is unknown: \"paths\" is all there is"},
      {R"({"paths": [{"path": "/a"}], "x": 1})", "\"x\" is unknown: \"paths\" is all there is"},
      {R"({"paths": [{"path": "/a"}], "paths": [{"path": "/b"}]})", "paths is given twice"},
      {batch("\"/a\""), "paths[0] is a string, not an object"},
      {batch(good + ", 17"), "paths[1] is a number, not an object"},
      {batch(good + ", [[[[[["), ""},
      {batch(good + ", [[[[[[]]]]]]"), "paths[1] is an array, not an object"},
      {batch("{}"), "paths[0].path is missing"},
      {batch(good + ", {\"tags\": {}}"), "paths[1].path is missing"},
      {batch(R"({"path": 5})"), "paths[0].path is a number, not a string"},
      {batch(R"({"path": ["/a"]})"), "paths[0].path is an array, not a string"},
      {batch(R"({"path": {"path": {}}})"), "paths[0].path is an object, not a string"},
      {batch(R"({"path": ""})"), "paths[0].path does not begin with '/'"},
      {batch(R"({"path": "a/b"})"), "paths[0].path does not begin with '/'"},
      {batch(R"({"path": "/a\u0000b"})"), "paths[0].path holds a NUL"},
      {batch(R"({"path": "/a", "path": "/b"})"), "paths[0].path is given twice"},
      {batch(R"({"path": "/a", "revert": true})"),
       "paths[0].revert is unknown: \"path\" and \"tags\" are all there is"},
      {batch(R"({"path": "/a", "odd name": 1})"),
       "paths[0][\"odd name\"] is unknown: \"path\" and \"tags\" are all there is"},
      {batch(R"({"path": "/a", "tags": []})"), "paths[0].tags is an array, not an object"},
      {batch(R"({"path": "/a", "tags": null})"), "paths[0].tags is null, not an object"},
      {batch(R"({"path": "/a", "tags": {}, "tags": {}})"), "paths[0].tags is given twice"},
      {batch(good + ", " + good + ", " + good + R"(, {"path": "/b", "tags": {"x": 1}})"),
       "paths[3].tags.x is a number, not a string"},
      {batch(R"({"path": "/a", "tags": {"x": true}})"),
       "paths[0].tags.x is true or false, not a string"},
      {batch(R"({"path": "/a", "tags": {"x": {"y": "z"}}})"),
       "paths[0].tags.x is an object, not a string"},
      {batch(R"({"path": "/a", "tags": {"x": "1", "x": "2"}})"), "paths[0].tags.x is given twice"},
      {batch(R"({"path": "/a", "tags": {"": "1"}})"), "paths[0].tags has a member without a name"},
      {batch(R"({"path": "/a", "tags": {"x\u0000": "1"}})"),
       "paths[0].tags has a name that holds a NUL"},
      {batch(R"({"path": "/a", "tags": {"x": "\u0000"}})"), "paths[0].tags.x holds a NUL"},
      {batch(R"({"path": "/a", "tags": {")" + std::string(256, 'k') + R"(": ""}})"),
       "paths[0].tags has a name longer than 255 bytes"},
      {batch(R"({"path": "/a", "tags": {"x": ")" + std::string(4097, 'v') + R"("}})"),
       "paths[0].tags.x is longer than 4096 bytes"},
      {batch(many), "paths[0].tags has more than 64 members"},
      {"[]", "neither a JSON object nor lines that begin with '/'"},
      {"paths=%2Fa\n", "neither a JSON object nor lines that begin with '/'"},
      {"a\n", "neither a JSON object nor lines that begin with '/'"},
      {" /a\n", "neither a JSON object nor lines that begin with '/'"},
      {"\n \t/a\n", "neither a JSON object nor lines that begin with '/'"},
      {"/a\nb\n", "line 2 does not begin with '/'"},
      {"/a\n\n/b\n /b\n", "line 4 does not begin with '/'"},
      {"/a\nb", "the last line does not begin with '/'"},
      {"/a\n" + batch(good) + "\n", "line 2 does not begin with '/'"},
      {std::string{"/a\n/b\0c\n", 8}, "line 2 holds a NUL"},
      {std::string{"/a\0", 3}, "line 1 holds a NUL"},
      {"\n", "an empty request"},
      {" \n\n", "an empty request"},
      {batch(good) + batch(good), ""},
      {batch(good) + "\n/b\n", ""},
      {batch(good).substr(0, 20), "the JSON ends before its object is closed"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(lock(c.text), EINVAL) << c.text;
    json answer = reply();
    EXPECT_EQ(answer["paths"], json::array());
    EXPECT_EQ(answer["error"]["code"], "400");
    EXPECT_NE(words(), "");
    if (c.why.empty()) continue;
    EXPECT_EQ(words(), c.why) << c.text;
  }
  EXPECT_TRUE(world.filelocks.applied.empty());
  EXPECT_EQ(lock(batch(good)), 0) << "the cases fail for what is wrong with them";
}

TEST_F(ControlFilelock, WhatUnfilelockTakes) {
  const auto why = [this](const std::string& item) {
    EXPECT_EQ(unlock("{\"paths\": [" + item + "]}"), EINVAL);
    return words();
  };
  EXPECT_EQ(why(R"({"path": "/a", "tags": {}})"),
            "paths[0].tags is unknown: \"path\" and \"revert\" are all there is");
  EXPECT_EQ(why(R"({"path": "/a", "revert": "true"})"),
            "paths[0].revert is a string, not true or false");
  EXPECT_EQ(why(R"({"path": "/a", "revert": 1})"),
            "paths[0].revert is a number, not true or false");
  EXPECT_EQ(why(R"({"path": "/a", "revert": null})"), "paths[0].revert is null, not true or false");
  EXPECT_EQ(why(R"({"path": "/a", "revert": true, "revert": true})"),
            "paths[0].revert is given twice");
  EXPECT_TRUE(world.filelocks.removed.empty());
}

TEST_F(ControlFilelock, WordsAreShortWhateverWasWritten) {
  const std::string huge(100'000, 'x');
  const Names texts{R"({"paths": [{"path": ")" + huge + R"(\x"}]})", R"({")" + huge + R"(": 1})",
                    R"({"paths": [{"path": "/a", ")" + huge + R"(": 1}]})",
                    R"({"paths": [{"path": "/a", "tags": {")" + huge.substr(0, 255) + R"(": 1}}]})",
                    huge};
  for (const std::string& text : texts) {
    EXPECT_EQ(lock(text), EINVAL);
    EXPECT_LT(words().size(), 500U);
  }
}

TEST_F(ControlFilelock, TheLimitsAreExact) {
  std::string tags;
  for (int i = 0; i < 64; ++i) {
    std::string key = std::to_string(i);
    key.resize(255, 'k');
    tags += (i == 0 ? "\"" : ", \"") + key + "\": \"" + std::string(4096, 'v') + '"';
  }
  EXPECT_EQ(lock("{\"paths\": [{\"path\": \"/a\", \"tags\": {" + tags + "}}]}"), 0);
  EXPECT_EQ(world.filelocks.applied.at(0).tags->size(), 64U);
  std::string most = R"({"paths": [{"path": "/a"}]})";
  most.resize(std::size_t{1} << 20, ' ');
  EXPECT_EQ(lock(most), 0);
  EXPECT_EQ(lock(most + ' '), EMSGSIZE);
  EXPECT_EQ(reply()["error"]["code"], "413");
  EXPECT_EQ(reply()["paths"], json::array());
  EXPECT_EQ(world.filelocks.applied.size(), 2U);
}

// ---- one path a line

TEST_F(ControlFilelock, LinesRunWhenTheyAreComplete) {
  EXPECT_EQ(lock("/a\n"), 0);
  EXPECT_EQ(world.filelocks.locked(), Names{"/a"});
  EXPECT_EQ(unlock("\n\n/a\n\n/b\n"), ENOENT) << "blank lines do not count";
  EXPECT_EQ(reply()["paths"].size(), 2U);

  const auto fh = open("filelock", O_RDWR);
  EXPECT_EQ(write(fh, "/a\n/b"), 0);
  EXPECT_EQ(world.filelocks.locked(), Names{"/a"}) << "/b may go on";
  EXPECT_EQ(write(fh, "2\n/mis"), ENOENT);
  EXPECT_EQ(write(fh, "sing"), 0);
  EXPECT_EQ(world.filelocks.applied.back().path, "/b2");
  EXPECT_EQ(world.tree().flush(fh, kAlice).error().value(), ENOENT);
  EXPECT_EQ(world.filelocks.applied.back().path, "/missing");
  EXPECT_EQ(write(fh, "/b"), 0);
  world.tree().release(fh);
  EXPECT_EQ(world.filelocks.locked(), (Names{"/a", "/b"})) << "at the last close";
}

TEST_F(ControlFilelock, NamesAreTakenLiterally) {
  const Names names{"/ a b ",           "/it's \"quoted\"", "/cr\r",   "/%2F&=+",
                    "/{\"paths\": []}", "/tab\t",           "/caf\xE9"};
  std::string text;
  for (const std::string& name : names) {
    world.files.file(name, 1000);
    text += name + '\n';
  }
  EXPECT_EQ(lock(text), 0);
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(world.filelocks.applied.at(i).path, names[i]);
  }
  world.files.file("/end ", 1000);
  EXPECT_EQ(lock("/end "), 0) << "without newline";
  EXPECT_EQ(world.filelocks.applied.back().path, "/end ");
}

TEST_F(ControlFilelock, LinesInAnyPieces) {
  const std::string text = "\n/a\n \n/b\n\n/a";
  for (std::size_t piece = 1; piece <= text.size(); ++piece) {
    world.filelocks.applied.clear();
    const auto fh = open("filelock", O_RDWR);
    for (std::size_t at = 0; at < text.size(); at += piece) {
      ASSERT_EQ(write(fh, text.substr(at, piece)), 0) << piece;
    }
    ASSERT_TRUE(world.tree().flush(fh, kAlice).ok()) << piece;
    Names paths;
    for (const auto& call : world.filelocks.applied) paths.push_back(call.path);
    EXPECT_EQ(paths, (Names{"/a", "/b", "/a"})) << piece;
    EXPECT_EQ(read(fh)["paths"].size(), 3U) << piece;
    EXPECT_EQ(reply()["paths"].size(), 3U) << piece;
    world.tree().release(fh);
    EXPECT_EQ(lock(" /a\n"), EINVAL) << "an indented one in one piece";
    const auto pieces = open("filelock", O_WRONLY);
    EXPECT_EQ(write(pieces, "\n "), 0);
    EXPECT_EQ(write(pieces, "/a\n"), EINVAL) << "and in two";
    world.tree().release(pieces);
  }
}

TEST_F(ControlFilelock, TheReplyHasAllLinesSoFar) {
  const auto fh = open("filelock", O_RDWR);
  EXPECT_EQ(write(fh, "/a\n"), 0);
  EXPECT_EQ(write(fh, "/missing\n"), ENOENT);
  EXPECT_EQ(write(fh, "/b\n"), 0);
  const json so_far = read(fh, 77);
  ASSERT_EQ(so_far["paths"].size(), 3U);
  EXPECT_EQ(so_far["paths"][0]["path"], "/a");
  EXPECT_EQ(so_far["paths"][1]["error"]["code"], "404");
  EXPECT_EQ(so_far["paths"][2], (json{{"path", "/b"}}));
  EXPECT_EQ(reply(), so_far);
  EXPECT_EQ(write(fh, "nonsense\n"), EINVAL);
  EXPECT_EQ(read(fh)["paths"], json::array());
  EXPECT_EQ(write(fh, "/b\n"), 0);
  EXPECT_EQ(read(fh)["paths"].size(), 4U);
  EXPECT_EQ(write(fh, R"({"paths": [{"path": "/a"}]})"), 0);
  EXPECT_EQ(read(fh)["paths"].size(), 1U) << "JSON has a reply of its own";
  EXPECT_EQ(write(fh, "/b\n"), 0);
  EXPECT_EQ(read(fh)["paths"].size(), 1U) << "and lines begin anew after it";
  world.tree().release(fh);
}

TEST_F(ControlFilelock, ALongRepliesOldestLinesAreLeftOut) {
  const auto fh = open("filelock", O_RDWR);
  std::string lines;
  for (int i = 0; i < 1000; ++i) lines += "/missing" + std::to_string(i) + "\n";
  for (int i = 0; i < 30; ++i) EXPECT_EQ(write(fh, lines), ENOENT);
  const std::string text = world.cat("reply", kAlice);
  EXPECT_LT(text.size(), control::FilelockRequests::kMaxReply + 1000);
  const json answer = parse_json(text);
  EXPECT_GT(answer["omitted"], 10'000);
  EXPECT_EQ(answer["omitted"].get<std::size_t>() + answer["paths"].size(), 30'000U);
  EXPECT_EQ(answer["paths"].back()["path"], "/missing999");
  world.tree().release(fh);
}

TEST_F(ControlFilelock, RepliesTogetherAreBounded) {
  // Each keeps twice a reply of nearly a megabyte; all together may have 64 MiB.
  std::string lines;
  for (int i = 0; i < 2600; ++i) lines += '/' + std::string(240, 'x') + std::to_string(i) + "\n";
  std::vector<std::uint64_t> open_files;
  std::size_t short_ones = 0;
  for (int i = 0; i < 50; ++i) {
    open_files.push_back(open("filelock", O_RDWR));
    EXPECT_EQ(write(open_files.back(), lines), ENOENT);
    const std::string text = world.tree().read(open_files.back(), 0, 1 << 20, kAlice).value();
    if (text.size() >= 1000) continue;
    EXPECT_EQ(parse_json(text)["error"]["code"], "507");
    ++short_ones;
  }
  EXPECT_EQ(world.filelocks.applied.size(), 130'000U) << "all were asked for all the same";
  EXPECT_GT(short_ones, 0U);
  EXPECT_LT(short_ones, 50U);
  for (const auto fh : open_files) world.tree().release(fh);
  EXPECT_EQ(lock(lines), ENOENT);
  EXPECT_EQ(reply()["paths"].size(), 2600U) << "what was closed counts no more";
}

// ---- which reply is found where

TEST_F(ControlFilelock, EachKindOfRequestHasItsLastReply) {
  EXPECT_EQ(world.cat("unfilelock", kAlice), "{}\n");
  ASSERT_EQ(lock("/a\n"), 0);
  EXPECT_EQ(world.cat("unfilelock", kAlice), "{}\n");
  EXPECT_EQ(world.cat("release", kAlice), "{}\n");
  ASSERT_EQ(unlock("/a\n"), 0);
  ASSERT_EQ(
      world.echo("ref=%2Fa&offset=0&size=0&owner_id=0000000000000001-0-0000000000000001", kAlice),
      ENOENT);
  ASSERT_EQ(lock("/b\n"), 0);
  EXPECT_EQ(world.json("unfilelock", kAlice)["paths"][0]["path"], "/a");
  EXPECT_EQ(world.json("release", kAlice)["ref"], "/a");
  EXPECT_EQ(world.json("reply", kAlice)["paths"][0]["path"], "/b");
  for (const auto* name : {"unfilelock", "release", "reply"}) {
    EXPECT_EQ(static_cast<std::size_t>(world.walk(name, kAlice)->attr.st_size),
              world.cat(name, kAlice).size());
    EXPECT_EQ(world.cat(name, kBob), "{}\n");
  }
}

TEST_F(ControlFilelock, ReadingGivesTheListingUntilSomethingWasAsked) {
  ASSERT_EQ(lock("/a\n"), 0);
  const auto fh = open("filelock", O_RDWR);
  EXPECT_EQ(read(fh)["filelocks"].size(), 1U);
  EXPECT_EQ(write(fh, "/b\n"), 0);
  EXPECT_EQ(read(fh, 3)["paths"][0]["path"], "/b") << "from where the descriptor stands";
  EXPECT_EQ(world.tree().read(fh, 5, 3, kAlice).value(), world.cat("reply", kAlice).substr(2, 3));
  world.tree().release(fh);
  const auto unfh = open("unfilelock", O_RDWR);
  EXPECT_EQ(world.tree().read(unfh, 0, 100, kAlice).value(), "{}\n");
  EXPECT_EQ(write(unfh, "/b\n"), 0);
  EXPECT_EQ(read(unfh)["paths"][0], (json{{"path", "/b"}}));
  world.tree().release(unfh);
}

// ---- who may

TEST_F(ControlFilelock, AnothersDescriptorIsRefused) {
  const auto bobs = open("filelock", O_RDWR, kBob);
  EXPECT_EQ(write(bobs, "/roots\n", kRoot), EACCES);
  EXPECT_EQ(words(kRoot), "the descriptor was opened by another user");
  EXPECT_EQ(reply(kRoot)["error"]["code"], "403");
  EXPECT_TRUE(world.filelocks.applied.empty());
  const auto admins = open("filelock", O_RDWR, kRoot);
  EXPECT_EQ(write(admins, "/missing\n", kRoot), ENOENT);
  EXPECT_EQ(write(admins, "/a\n", kAlice), 0);
  EXPECT_EQ(world.filelocks.applied.back().uid, 1000U) << "the writer is who counts";
  EXPECT_FALSE(world.filelocks.applied.back().admin);
  EXPECT_EQ(reply(kAlice)["paths"].size(), 1U) << "not what root asked for before";
  EXPECT_EQ(write(admins, "/roots\n", kAlice), EACCES);
}

TEST_F(ControlFilelock, WhatWasDoneIsLoggedAndCannotBeForged) {
  const std::string file_name =
      ::testing::TempDir() + "control_filelock_log." + std::to_string(::getpid());
  world.files.file("/x\ny", 1000);
  ASSERT_TRUE(log::open(file_name, log::Level::kInfo).ok());
  EXPECT_EQ(lock(R"({"paths": [{"path": "/x\ny"}]})", {1000, 1000, 77, 0}), 0);
  EXPECT_EQ(lock("/a\n/missing\n"), ENOENT);
  EXPECT_EQ(unlock(R"({"paths": [{"path": "/a", "revert": true}]})", kBob), EACCES);
  EXPECT_EQ(unlock(R"({"paths": [{"path": "/a", "revert": true}]})"), 0);
  EXPECT_EQ(unlock("/x\n"), ENOENT);
  EXPECT_EQ(unlock(R"({"paths": [{"path": "/x\ny"}]})"), 0);
  ASSERT_TRUE(log::open("stderr", log::Level::kWarn).ok());
  std::ifstream stream{file_name};
  Names lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  ::unlink(file_name.c_str());
  const Names expected{"filelocked: uid 1000 pid 77 locked '/x\\x0ay'",
                       "filelocked: uid 1000 pid 0 locked '/a'",
                       "unfilelock refused: uid 1001 pid 0: '/a': errno 13: Permission denied",
                       "unfilelocked: uid 1000 pid 0 unlocked '/a', reverted",
                       "unfilelocked: uid 1000 pid 0 unlocked '/x\\x0ay'"};
  ASSERT_EQ(lines.size(), expected.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_TRUE(lines[i].ends_with(expected[i])) << lines[i];
  }
}

}  // namespace
}  // namespace latchfs::testing
