#include "support/control_world.h"

#include <fcntl.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"

namespace latchfs::testing {

ByteRange range(std::uint64_t offset, std::uint64_t size) {
  return ByteRange::from_offset_size(offset, size).value();
}

Grant grant(FileId file, std::uint64_t key, ByteRange bytes, uid_t uid, LockMode mode) {
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

nlohmann::json parse_json(std::string_view text) { return nlohmann::json::parse(text); }
bool is_json(std::string_view text) { return nlohmann::json::accept(text); }
std::string dump(const nlohmann::json& value, int indent) { return value.dump(indent); }

ControlWorld::ControlWorld(control::Options opts) : options{std::move(opts)} {
  static const bool quiet = log::open("stderr", log::Level::kWarn).ok();
  static_cast<void>(quiet);
}

control::Options ControlWorld::default_options() {
  control::Options options;
  options.mountpoint = "/mnt/data";
  options.name = ".locks";
  options.node_name = "build7";
  options.node_address = "127.0.0.1";
  options.version = "0.1.0";
  return options;
}

control::Tree& ControlWorld::tree() {
  if (!tree_) tree_ = std::make_unique<control::Tree>(locks, files, filelocks, options);
  return *tree_;
}

Result<control::NodeAttr> ControlWorld::walk(std::string_view path, const Caller& caller) {
  Result<control::NodeAttr> at = tree().getattr(control::kTreeRoot, caller);
  while (!path.empty() && at) {
    const auto slash = std::min(path.find('/'), path.size());
    at = tree().lookup(at->node, path.substr(0, slash), caller);
    path.remove_prefix(std::min(path.size(), slash + 1));
  }
  return at;
}

std::string ControlWorld::cat(std::string_view path, const Caller& caller, std::size_t chunk) {
  const auto node = walk(path, caller).value();
  const auto fh = tree().open(node.node, O_RDONLY, caller).value();
  std::string out;
  while (true) {
    const std::string part = tree().read(fh, out.size(), chunk, caller).value();
    if (part.empty()) break;
    out += part;
  }
  static_cast<void>(tree().flush(fh, caller));
  tree().release(fh);
  return out;
}

nlohmann::json ControlWorld::json(std::string_view path, const Caller& caller) {
  return parse_json(cat(path, caller));
}

int ControlWorld::echo(std::string_view text, const Caller& caller) {
  return echo_to("release", text, caller);
}

int ControlWorld::echo_to(std::string_view path, std::string_view text, const Caller& caller) {
  const auto node = walk(path, caller).value();
  const auto fh = tree().open(node.node, O_WRONLY, caller).value();
  int err = tree().write(fh, 0, text, caller).error().value();
  const int at_close = tree().flush(fh, caller).error().value();
  if (err == 0) err = at_close;
  tree().release(fh);
  return err;
}

}  // namespace latchfs::testing
