// Random steps that mean something: paths that mostly exist, descriptors that are mostly open,
// numbers near the edges.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "support/fs_exec.h"
#include "support/fs_op.h"

namespace latchfs::fsdiff {

// A path of the tree as it is now (without the leading mount).
struct Known {
  std::string path;
  bool directory{};
  bool regular{};
  bool link{};
  bool executable{};
};

class Generator {
 public:
  // mounts: 1 or 2, how many mounts of the tree the steps alternate between.
  // actors: the first so many of identity().
  Generator(std::uint64_t seed, int mounts, std::vector<int> actors);

  // The next step. `existing`: what is in the tree now.
  Op next(const std::vector<Known>& existing);
  // How it went: the generator remembers which slots are in use.
  void learn(const Op& op, const Outcome& outcome);

 private:
  enum class Want : std::uint8_t { kAny, kFile, kDirectory, kLink, kProgram };
  [[nodiscard]] static bool fits(const Known& known, Want want);
  // What the generator believes of an actor.
  struct Slots {
    std::array<bool, kSlots> open{};
    std::array<bool, kSlots> directory{};
    std::array<bool, kSlots> direct{};  // O_DIRECT: used with whole blocks only
    std::array<bool, kMaps> mapped{};
    std::array<bool, kChildren> child{};
    bool limited{};
  };

  bool chance(int percent) { return number(100) < percent; }
  int number(int below);
  template <class List>
  auto pick(const List& list) {
    return list[static_cast<std::size_t>(number(static_cast<int>(std::size(list))))];
  }
  std::string name();
  std::string fresh_path(const std::vector<Known>& existing);
  std::string path(const std::vector<Known>& existing, int existing_percent, Want want);
  std::string decorate(std::string path);
  int any_slot(bool directory);
  [[nodiscard]] bool has_slot(bool directory) const;
  void open_something(Op& op, const std::vector<Known>& existing, bool directory);
  int free_slot();
  std::int64_t offset();
  std::int64_t near_offset();
  std::int64_t size();
  std::int64_t mode();
  std::int64_t user();
  std::int64_t open_flags();
  std::int64_t allocate_mode();
  void place(int& dir, std::string& path, const std::vector<Known>& existing, int percent,
             Want want = Want::kAny);

  void data(Op& op, const std::vector<Known>& existing);
  void names(Op& op, const std::vector<Known>& existing);
  void attributes(Op& op, const std::vector<Known>& existing);
  void programs(Op& op, const std::vector<Known>& existing);

  std::mt19937_64 random_;
  int mounts_;
  std::vector<int> actors_;
  std::array<Slots, kActors> state_{};
  Slots* slots_{};
};

}  // namespace latchfs::fsdiff
