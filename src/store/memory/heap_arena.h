// LockTable's arena on the heap: no log, nothing to recover.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "latchfs/types.h"
#include "lock/records.h"

namespace latchfs {

class HeapArena {
 public:
  template <class T>
  [[nodiscard]] const T& get(lock::Ref ref) const {
    return *reinterpret_cast<const T*>(cell(ref));
  }
  template <class T>
  [[nodiscard]] bool could_be(lock::Ref) const {
    return true;  // chunks stay
  }
  template <class T, class V>
  void set(const T& field, V value) {
    const_cast<T&>(field) = static_cast<T>(value);
  }
  template <class T>
  lock::Ref alloc() {
    auto& free = free_list<T>();
    if (free.empty()) grow<T>();
    const lock::Ref ref = free.back();
    free.pop_back();
    std::memset(cell(ref), 0, sizeof(T));
    return ref;
  }
  template <class T>
  void free(lock::Ref ref) {
    std::memset(cell(ref), 0xdd, sizeof(T));  // whoever reads on gets nonsense
    free_list<T>().push_back(ref);
  }
  template <class T>
  [[nodiscard]] bool can_take(int) const {
    return true;
  }
  template <class T>
  void reserve(int) {}
  void commit() {}
  [[nodiscard]] static std::uint64_t secret() { return 0; }  // one process's own: nobody to fear
  // Every operation is in the table.
  void file_appears(FileId) {}
  void file_goes(FileId) {}
  [[nodiscard]] bool file_expected(FileId) const { return true; }
  template <class Fn>
  void take_in_operations(FileId, Fn&&) {}
  [[nodiscard]] std::vector<FileId> files_of_operations() const { return {}; }

 private:
  static constexpr std::size_t kCellBytes = 64;
  static constexpr std::size_t kCellsPerChunk = 1024;

  struct alignas(64) Chunk {
    std::byte bytes[kCellBytes * kCellsPerChunk];
  };

  [[nodiscard]] std::byte* cell(lock::Ref ref) const {
    return chunks_[ref / kCellsPerChunk]->bytes + (ref % kCellsPerChunk) * kCellBytes;
  }
  template <class T>
  std::vector<lock::Ref>& free_list() {
    return sizeof(T) == kCellBytes ? free_small_ : free_large_;
  }
  template <class T>
  void grow() {
    constexpr std::size_t step = sizeof(T) / kCellBytes;
    const std::size_t base = chunks_.size() * kCellsPerChunk;
    chunks_.push_back(std::make_unique<Chunk>());
    auto& free = free_list<T>();
    for (std::size_t i = kCellsPerChunk; i >= step; i -= step) {
      const auto ref = static_cast<lock::Ref>(base + i - step);
      if (ref != 0) free.push_back(ref);
    }
  }

  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::vector<lock::Ref> free_small_, free_large_;
};

}  // namespace latchfs
