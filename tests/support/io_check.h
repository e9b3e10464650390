// Random reads, writes, mappings, truncations and the like on one file through several places (two
// mounts and the directory below, say), each compared at once with a model in memory, as fsx does
// for one place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace latchfs::test {

// What the checker must find: its own trial, on a native directory.
enum class Planted : std::uint8_t {
  kNothing,
  kLostByte,     // the last byte of a write is not written, now and then
  kDirtyTail,    // what a truncation cut off is there again when the file grows
  kStaleRead,    // a read gives what was there before the last write
  kWrongOffset,  // an append goes to where the file ended a moment ago
  kStaleMap,     // a store through a mapping gets lost
};

struct IoCheck {
  std::vector<std::string> places;  // directories that show the same file
  bool mappings{true};              // mappings show what is done in all places
  // sendfile(2) and splice(2) from a descriptor open for writing may say EINVAL.
  bool may_refuse_sendfile{};
  std::size_t steps{2000};
  Planted planted{Planted::kNothing};
};

// Runs one sequence. Nothing: all was as it should be; else what was wrong, with the last steps.
[[nodiscard]] std::optional<std::string> run_io_check(const IoCheck& check, std::uint64_t seed);

}  // namespace latchfs::test
