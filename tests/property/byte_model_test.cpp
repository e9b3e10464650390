// Random lock calls on a store and on the byte model: the same grants, conflicts and wake-ups.
#include "support/byte_model.h"

#include <gtest/gtest.h>

#include "support/sanitized.h"
#include "support/store_fixture.h"

namespace latchfs::test {
namespace {

class RangeProperty : public ::testing::TestWithParam<const char*> {};

constexpr FileId kFile{1, 7};

std::vector<std::string> listed(LockService& store) {
  std::vector<std::string> out;
  ListQuery query;
  query.limit = 5;
  for (;;) {
    const auto page = store.list(query);
    if (!page.ok()) return {"list failed"};
    for (const Grant& g : page->grants) {
      out.push_back(ByteModel::describe(g.owner, g.range.begin(), g.range.end(), g.mode));
    }
    if (!page->next) break;
    query.after = *page->next;
  }
  std::sort(out.begin(), out.end());
  return out;
}

TEST_P(RangeProperty, AgreesWithByteModel) {
  for (const std::uint64_t seed : seeds()) {
    SCOPED_TRACE("LATCHFS_SEED=" + std::to_string(seed));
    std::mt19937_64 rng{seed};
    const auto below = [&](std::uint64_t n) { return rng() % n; };
    RecordingSink sink;
    const auto store = make_store(GetParam(), sink);
    ASSERT_NE(store, nullptr);
    ByteModel model;
    int next_id = 1;
    std::size_t told = 0;
    const auto expect_told = [&](const std::vector<int>& granted) {
      const auto order = sink.order();
      ASSERT_EQ(order.size() - told, granted.size());
      // The model starts over at the front after each grant; the same set, perhaps another order.
      std::vector<std::uint64_t> mine(order.begin() + static_cast<std::ptrdiff_t>(told),
                                      order.end());
      std::sort(mine.begin(), mine.end());
      std::vector<std::uint64_t> theirs(granted.begin(), granted.end());
      std::sort(theirs.begin(), theirs.end());
      ASSERT_EQ(mine, theirs);
      for (const auto id : mine) ASSERT_EQ(sink.outcome(id), 0);
      told = order.size();
    };
    for (int step = 0; step < (kSanitized ? 600 : 3000); ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      const bool flock = below(8) == 0;
      const OwnerId who{store->mount_id(), 1 + below(5),
                        flock ? OwnerSpace::kFlock : OwnerSpace::kRange};
      const std::uint64_t begin = flock ? 0 : below(ByteModel::kBytes);
      const std::uint64_t end =
          flock || below(6) == 0 ? ByteRange::kEof : begin + 1 + below(ByteModel::kBytes - begin);
      const ByteRange range = *ByteRange::from_half_open(begin, end);
      const auto what = below(10);
      // An owner that waits makes no further calls, as a single-threaded process would not.
      if (model.waits_for_any(who)) {
        const auto id =
            std::find_if(model.waits().begin(), model.waits().end(), [&](const auto& w) {
              return w.owner == who;
            })->id;
        if (below(3) == 0) {
          ASSERT_EQ(store->cancel(kFile, WaiterToken{static_cast<std::uint64_t>(id)}),
                    Cancelled::kCancelled);
          ASSERT_TRUE(model.cancel(id));
        }
      } else if (what < 3) {
        ASSERT_TRUE(store->release(kFile, who, range).ok());
        expect_told(model.set(who, range, std::nullopt));
      } else if (what == 3) {
        ASSERT_TRUE(store->drop_owner(kFile, who).ok());
        expect_told(model.set(who, ByteRange{}, std::nullopt));
      } else {
        LockRequest req;
        req.file = kFile;
        req.owner = who;
        req.range = range;
        req.mode = below(2) == 0 ? LockMode::kShared : LockMode::kExclusive;
        // OFD: no deadlock detection, which the byte model knows nothing of.
        req.kind = flock ? LockKind::kFlock : LockKind::kOfd;
        const bool queue = below(2) == 0;
        const int id = next_id++;
        const auto got = store->acquire(req, queue ? OnConflict::kQueue : OnConflict::kRefuse,
                                        WaiterToken{static_cast<std::uint64_t>(id)});
        ASSERT_TRUE(got.ok());
        std::vector<int> woken;
        if (flock) {
          // The old lock of another mode goes first; who waits for it comes after the converter.
          ByteModel probe = model;
          const auto mine = ByteModel::describe(who, 0, ByteRange::kEof, req.mode);
          const auto now = model.render();
          if (std::find(now.begin(), now.end(), mine) == now.end()) {
            if (!model.conflicts(who, range, req.mode)) {
              woken = model.set(who, range, req.mode);
              ASSERT_TRUE(std::holds_alternative<Granted>(*got));
            } else {
              woken = model.set(who, range, std::nullopt);
              if (!queue) {
                ASSERT_TRUE(std::holds_alternative<Conflict>(*got));
              } else {
                ASSERT_TRUE(std::holds_alternative<Queued>(*got));
                model.wait({id, who, range, req.mode});
              }
            }
          } else {
            ASSERT_TRUE(std::holds_alternative<Granted>(*got));
          }
        } else if (!model.conflicts(who, range, req.mode)) {
          ASSERT_TRUE(std::holds_alternative<Granted>(*got));
          woken = model.set(who, range, req.mode);
        } else if (!queue) {
          ASSERT_TRUE(std::holds_alternative<Conflict>(*got));
        } else {
          ASSERT_TRUE(std::holds_alternative<Queued>(*got));
          model.wait({id, who, range, req.mode});
        }
        expect_told(woken);
      }
      if (HasFatalFailure()) return;
      ASSERT_EQ(listed(*store), model.render());
      const auto wrong = store->verify();
      ASSERT_TRUE(wrong.ok());
      ASSERT_EQ(*wrong, "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, RangeProperty, ::testing::Values("memory", "shm"),
                         [](const auto& store) { return std::string{store.param}; });

}  // namespace
}  // namespace latchfs::test
