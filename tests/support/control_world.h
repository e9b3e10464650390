// A control tree over fakes, and the few words its tests are written in.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "control/tree.h"
#include "support/fake_filelocks.h"
#include "support/fake_files.h"
#include "support/fake_locks.h"

namespace latchfs::testing {

inline constexpr Caller kRoot{0, 0, 1, 022};
inline constexpr Caller kAlice{1000, 1000, 0, 022};
inline constexpr Caller kBob{1001, 1001, 0, 022};

ByteRange range(std::uint64_t offset, std::uint64_t size);

// A posix lock of uid `uid`, process 4711, whose owner's key is `key`.
Grant grant(FileId file, std::uint64_t key, ByteRange bytes, uid_t uid,
            LockMode mode = LockMode::kExclusive);

// Here and not in each test: the JSON library is slow to compile.
nlohmann::json parse_json(std::string_view text);
bool is_json(std::string_view text);
std::string dump(const nlohmann::json& value, int indent = -1);

struct ControlWorld {
  explicit ControlWorld(control::Options opts = default_options());
  static control::Options default_options();

  // Made when first asked for: what the test arranges before is there at once.
  control::Tree& tree();

  // Walks `path` below the control directory. The references stay.
  Result<control::NodeAttr> walk(std::string_view path, const Caller& caller = kRoot);
  // What cat(1) prints; throws on an error.
  std::string cat(std::string_view path, const Caller& caller = kRoot, std::size_t chunk = 65536);
  nlohmann::json json(std::string_view path, const Caller& caller = kRoot);
  // `printf TEXT > release`: the errno of the write or of the close, 0 if both went well.
  int echo(std::string_view text, const Caller& caller = kRoot);
  int echo_to(std::string_view path, std::string_view text, const Caller& caller = kRoot);

  FakeLocks locks;
  FakeFiles files;
  FakeFilelocks filelocks{files};
  control::Options options;

 private:
  std::unique_ptr<control::Tree> tree_;
};

}  // namespace latchfs::testing
