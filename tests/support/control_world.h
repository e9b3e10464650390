// A control tree over fakes, and the few words its tests are written in.
#pragma once

#include <fcntl.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/log.h"
#include "control/tree.h"
#include "support/fake_files.h"
#include "support/fake_locks.h"

namespace latchfs::testing {

inline constexpr Caller kRoot{0, 0, 1, 022};
inline constexpr Caller kAlice{1000, 1000, 0, 022};
inline constexpr Caller kBob{1001, 1001, 0, 022};

inline ByteRange range(std::uint64_t offset, std::uint64_t size) {
  return ByteRange::from_offset_size(offset, size).value();
}

// A posix lock of uid `uid`, process 4711, whose owner's key is `key`.
inline Grant grant(FileId file, std::uint64_t key, ByteRange bytes, uid_t uid,
                   LockMode mode = LockMode::kExclusive) {
  Grant out;
  out.file = file;
  out.owner = {1, key, OwnerSpace::kRange};
  out.range = bytes;
  out.mode = mode;
  out.kind = LockKind::kPosix;
  out.holder.pid = 4711;
  out.holder.uid = uid;
  std::string_view{"sqlite3"}.copy(out.holder.comm.data(), out.holder.comm.size());
  out.acquired_at_ns = 1'795'253'400'123'456'000;  // 2026-11-21T09:30:00.123456Z
  return out;
}

struct ControlWorld {
  explicit ControlWorld(control::Options opts = default_options()) : options{std::move(opts)} {
    static const bool quiet = log::open("stderr", log::Level::kWarn).ok();
    static_cast<void>(quiet);
  }

  static control::Options default_options() {
    control::Options options;
    options.mountpoint = "/mnt/data";
    options.name = ".locks";
    options.node_name = "build7";
    options.node_address = "127.0.0.1";
    options.version = "0.1.0";
    return options;
  }

  control::Tree& tree() {
    if (!tree_) tree_ = std::make_unique<control::Tree>(locks, files, options);
    return *tree_;
  }

  // Walks `path` below the control directory. The references stay.
  Result<control::NodeAttr> walk(std::string_view path, const Caller& caller = kRoot) {
    Result<control::NodeAttr> at = tree().getattr(control::kTreeRoot, caller);
    while (!path.empty() && at) {
      const auto slash = std::min(path.find('/'), path.size());
      at = tree().lookup(at->node, path.substr(0, slash), caller);
      path.remove_prefix(std::min(path.size(), slash + 1));
    }
    return at;
  }
  // What cat(1) prints; throws on an error.
  std::string cat(std::string_view path, const Caller& caller = kRoot, std::size_t chunk = 65536) {
    const auto node = walk(path, caller).value();
    const auto fh = tree().open(node.node, O_RDONLY, caller).value();
    std::string out;
    while (true) {
      const std::string part = tree().read(fh, out.size(), chunk).value();
      if (part.empty()) break;
      out += part;
    }
    static_cast<void>(tree().flush(fh, caller));
    tree().release(fh);
    return out;
  }
  nlohmann::json json(std::string_view path, const Caller& caller = kRoot) {
    return nlohmann::json::parse(cat(path, caller));
  }
  // `echo TEXT > release`: the errno of the write or of the close, 0 if both went well.
  int echo(std::string_view text, const Caller& caller = kRoot) {
    const auto node = walk("release", caller).value();
    const auto fh = tree().open(node.node, O_WRONLY, caller).value();
    int err = tree().write(fh, 0, text, caller).error().value();
    const int at_close = tree().flush(fh, caller).error().value();
    if (err == 0) err = at_close;
    tree().release(fh);
    return err;
  }

  FakeLocks locks;
  FakeFiles files;
  control::Options options;

 private:
  std::unique_ptr<control::Tree> tree_;
};

}  // namespace latchfs::testing
