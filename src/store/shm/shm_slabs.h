// ShmArena: records in chunks, one size a chunk. Included by shm_arena.h only.
//
// A chunk of a shard is full (in no list), has room (in its slab's list) or has nothing in it (in
// the shard's list of empty ones, to be opened for either size or given back). A slab's only chunk
// stays in its list when its last record goes: else the first lock of a file would open a chunk and
// its unlock close it.
#pragma once

#include <fmt/core.h>

namespace latchfs::shm {

template <class T>
lock::Ref ShmArena::alloc() {
  const Slab& slab = slab_for<T>();
  if (slab.head == 0) open_chunk<T>();
  const Chunk at = slab.head;
  const ChunkRec& c = chunk_of<T>(at);
  const bool again = c.free != 0;
  const std::uint32_t record = again ? c.free - 1U : c.fresh;
  if (record >= kRecords<T> || c.used >= kRecords<T>) {
    throw lock::Damaged{"a full chunk among those with room"};
  }
  const auto ref = static_cast<lock::Ref>(at * kChunkCells + record * kWidth<T>);
  if (again) {
    set(c.free, next_free(ref));
  } else {
    set(c.fresh, c.fresh + 1);
  }
  set(c.used, c.used + 1);
  set(slab.room, slab.room - 1);
  if (c.used == kRecords<T>) unlink(slab, at);
  const auto* words =
      reinterpret_cast<const std::uint64_t*>(base_ + std::uint64_t{ref} * kCellBytes);
  for (std::size_t i = 0; i < sizeof(T) / 8; ++i) set(words[i], std::uint64_t{0});
  return ref;
}

template <class T>
void ShmArena::free(lock::Ref ref) {
  if (!could_be<T>(ref)) damaged("a record is given back that is none");
  const Slab& slab = slab_for<T>();
  const Chunk at = ref / kChunkCells;
  const ChunkRec& c = chunk_of<T>(at);
  if (c.used == 0) throw lock::Damaged{"a record is given back to a chunk that has none"};
  const bool was_full = c.used == kRecords<T>;
  set(next_free(ref), c.free);
  set(c.free, ref % kChunkCells / kWidth<T> + 1);
  set(c.used, c.used - 1);
  set(slab.room, slab.room + 1);
  if (was_full) push(slab, at);
  if (c.used != 0 || (slab.head == at && c.next == 0)) return;
  unlink(slab, at);
  set(slab.room, slab.room - kRecords<T>);
  push_empty(at);
}

template <class T>
void ShmArena::open_chunk() {
  const Chunk at = pop_empty();
  if (at == 0) throw lock::NeedCells{};
  const ChunkRec& c = mine(at);
  set(c.free, 0);
  set(c.used, 0);
  set(c.fresh, 0);
  set(c.width, kWidth<T>);
  const Slab& slab = slab_for<T>();
  set(slab.room, slab.room + kRecords<T>);
  push(slab, at);
}

template <class T>
void ShmArena::close_unused() {
  const Slab& slab = slab_for<T>();
  const Chunk at = slab.head;
  if (at == 0 || chunk_of<T>(at).used != 0) return;
  unlink(slab, at);
  set(slab.room, slab.room - kRecords<T>);
  push_empty(at);
}

inline void ShmArena::close_last() {
  close_unused<lock::GrantRec>();
  close_unused<lock::OwnerRec>();
}

inline void ShmArena::push(const Slab& slab, Chunk at) {
  const ChunkRec& c = mine(at);
  set(c.prev, 0U);
  set(c.next, slab.head);
  if (slab.head != 0) set(mine(slab.head).prev, at);
  set(slab.head, at);
}

inline void ShmArena::unlink(const Slab& slab, Chunk at) {
  const ChunkRec& c = mine(at);
  if (c.next != 0) set(mine(c.next).prev, c.prev);
  set(c.prev != 0 ? mine(c.prev).next : slab.head, c.next);
}

inline void ShmArena::push_empty(Chunk at) {
  const ChunkRec& c = mine(at);
  set(c.width, 0);  // no record is here any more
  set(c.next, shard_.empty);
  set(shard_.empty, at);
  set(shard_.empty_count, shard_.empty_count + 1);
}

inline Chunk ShmArena::pop_empty() {
  const Chunk at = shard_.empty;
  if (at == 0) return 0;
  set(shard_.empty, mine(at).next);
  set(shard_.empty_count, shard_.empty_count - 1);
  return at;
}

inline void ShmArena::gain(Chunk at) {
  const ChunkRec& c = chunks_[at];
  if (at == space_.given_back) {
    set(space_.given_back, c.next);
    set(space_.given_back_count, space_.given_back_count - 1);
  } else {
    set(space_.frontier, (std::uint64_t{at} + 1) * kChunkBytes);
    limit_ = at + 1;
    refs_ = (limit_ - first_) * kChunkCells;
  }
  set(c.owner, mine_);
  set(shard_.chunks, shard_.chunks + 1);
  push_empty(at);
}

inline Chunk ShmArena::lose() {
  const Chunk at = pop_empty();
  if (at == 0) return 0;
  const ChunkRec& c = mine(at);
  set(c.owner, 0);
  set(c.next, space_.given_back);
  set(space_.given_back, at);
  set(space_.given_back_count, space_.given_back_count + 1);
  set(shard_.chunks, shard_.chunks - 1);
  return at;
}

inline void ShmArena::gather_chunks() {
  std::uint32_t found = 0;
  Chunk last = 0;
  for (Chunk at = first_; at < limit_; ++at) {
    if (owner_of(at) != mine_) continue;
    chunks_[at].next = last;
    chunks_[at].width = 0;
    last = at;
    ++found;
  }
  shard_.small = {};
  shard_.large = {};
  shard_.empty = last;
  store(&shard_.empty_count, found);
  shard_.chunks = found;
}

template <class T>
std::string ShmArena::check_slab(std::uint32_t& chunks, std::uint32_t most) const {
  const Slab& slab = slab_for<T>();
  std::uint64_t room = 0;
  Chunk before = 0;
  for (Chunk at = slab.head; at != 0; at = mine(at).next) {
    if (++chunks > shard_.chunks) return "more chunks with room than chunks";
    const ChunkRec& c = chunk_of<T>(at);
    if (c.prev != before) return "chunks that are not linked both ways";
    if (c.used >= kRecords<T> || c.fresh > kRecords<T> || c.used > c.fresh) {
      return "a chunk among those with room that has none";
    }
    std::uint32_t free = 0;
    for (std::uint32_t r = chunks <= most ? c.free : 0; r != 0;) {
      if (r > c.fresh || ++free > c.fresh) return "a broken list of free records";
      r = next_free(static_cast<lock::Ref>(at * kChunkCells + (r - 1) * kWidth<T>));
    }
    if (chunks <= most && free + c.used != c.fresh)
      return "records of a chunk that are neither free nor used";
    room += kRecords<T> - c.used;
    before = at;
  }
  return room == slab.room ? "" : "the room in chunks and its sum disagree";
}

inline std::string ShmArena::check_slabs(std::uint32_t most) const {
  std::uint32_t listed = 0;
  for (const auto& wrong :
       {check_slab<lock::GrantRec>(listed, most), check_slab<lock::OwnerRec>(listed, most)}) {
    if (!wrong.empty()) return wrong;
  }
  std::uint32_t empty = 0;
  for (Chunk at = shard_.empty; at != 0; at = mine(at).next) {
    if (++empty > shard_.empty_count) break;
    if (mine(at).width != 0) return "an empty chunk with records";
  }
  if (empty != shard_.empty_count) return "the empty chunks and their count disagree";
  std::uint32_t have = 0;
  for (Chunk at = first_; at < limit_; ++at) {
    if (owner_of(at) != mine_) continue;
    const ChunkRec& c = chunks_[at];
    ++have;
    const std::uint32_t records = c.width == 0 ? 0 : kChunkCells / c.width;
    if (records != 0 && c.used == records) ++listed;  // full: in no list
  }
  if (have != shard_.chunks || listed + empty != have) {
    return fmt::format("{} chunks, {} counted, {} accounted for", have, shard_.chunks,
                       listed + empty);
  }
  return "";
}

}  // namespace latchfs::shm
