// A table's memory as the single-stepping crash test sees it: watched for change after every
// instruction, copied at every point where a process might have died.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "store/shm/registry.h"

namespace latchfs::test {

// One shared memory object, mapped whole.
class Image {
 public:
  // Null: there is none of that name, or it has no size yet.
  static std::unique_ptr<Image> open(const std::string& name);
  // A new one of zeros.
  static std::unique_ptr<Image> create(const std::string& name, std::size_t bytes);
  ~Image();
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  [[nodiscard]] const std::byte* page(std::size_t i) const;
  [[nodiscard]] std::byte* page(std::size_t i);
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  // Those that hold anything but zeros.
  [[nodiscard]] std::set<std::size_t> pages_in_use() const;

 private:
  Image(UniqueFd fd, std::byte* base, std::size_t bytes)
      : fd_{std::move(fd)}, base_{base}, bytes_{bytes} {}
  UniqueFd fd_;
  std::byte* base_;
  std::size_t bytes_;
};

// The table of one name: its registry file, and what that leads to, which an act may make or
// remove.
class WatchedTable {
 public:
  // pages: all that ever hold something during the act.
  WatchedTable(const std::string& table, std::set<std::size_t> pages);

  // Whether the memory differs from what it was at the last call.
  bool changed();
  // What a system call may have changed: the name, the object.
  void look_again();
  // Makes `table` a copy of this one as it is. Null if there is no memory to copy (then the copy's
  // registry names what this one's does). False: it could not.
  bool copy_to(const std::string& table, std::unique_ptr<Image>& copy) const;
  // Whether a page outside of `pages` is in use: a change may have been missed.
  [[nodiscard]] bool missed_a_page() const;

 private:
  shm::Registry registry_;
  std::set<std::size_t> pages_;
  std::string name_;
  bool linked_{};
  std::unique_ptr<Image> image_;
  std::vector<std::byte> shadow_;
};

// Offsets of a table's robust mutexes.
[[nodiscard]] const std::vector<std::size_t>& table_mutexes();

// Takes the table away, registry file and memory.
void remove_table(const std::string& table);

}  // namespace latchfs::test
