// Streamed weights without a card: the schedule's two queues run in every order that a card allows.
#include "kernels/weight_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace nibble {
namespace {

enum class Mistake : std::uint8_t {
  kNone,
  kFillDoesNotWait,
  kKernelsDoNotWait,
  kWaitsForAnOldFill
};

/// A card: kernels of one queue may overlap, as programmatic dependent launches do, the copies of
/// the other may not. What is put in is run later, in an order drawn from a seed.
class Card final : public SlotQueues {
 public:
  explicit Card(int num_slots, Mistake mistake = Mistake::kNone)
      : held_(static_cast<std::size_t>(num_slots), -1),
        read_(held_.size(), -1),
        filled_(held_.size(), -1),
        mistake_(mistake) {}

  void MarkRead(int slot) override {
    read_[At(slot)] = NewMark();
    kernels_.push_back({.kind = Kind::kMark, .mark = read_[At(slot)]});
  }
  void Fill(int slot, int part) override {
    fills.push_back(part);
    copies_.push_back({.kind = Kind::kWait,
                       .mark = mistake_ == Mistake::kFillDoesNotWait ? -1 : read_[At(slot)]});
    copies_.push_back({.kind = Kind::kWork, .slot = slot, .part = part});
    const int before = filled_[At(slot)];
    filled_[At(slot)] = NewMark();
    copies_.push_back({.kind = Kind::kMark, .mark = filled_[At(slot)]});
    old_fill_ = before >= 0 ? before : filled_[At(slot)];
  }
  void AwaitFilled(int slot) override {
    const int mark = mistake_ == Mistake::kKernelsDoNotWait    ? -1
                     : mistake_ == Mistake::kWaitsForAnOldFill ? old_fill_
                                                               : filled_[At(slot)];
    kernels_.push_back({.kind = Kind::kWait, .mark = mark});
  }
  /// A kernel that reads a part, or (-1) weights that are not streamed.
  void Launch(int slot, int part) {
    kernels_.push_back({.kind = Kind::kWork, .slot = slot, .part = part});
  }

  /// Runs everything. What went wrong first, or nothing.
  std::string Run(std::uint32_t seed) {
    std::mt19937 rng(seed);
    const auto slow = rng() % 3;  // the copies, the kernels, or neither
    while (!kernels_.empty() || !copies_.empty() || !running_.empty() || copying_.slot >= 0) {
      const std::vector<int> moves = Moves();
      if (moves.empty()) {
        return "nothing can go on";
      }
      int move = moves[rng() % moves.size()];
      if (const bool of_copies = move >= kBeginCopy;
          (slow == 0 && of_copies) || (slow == 1 && !of_copies)) {
        move = moves[rng() % moves.size()];  // drawn again: less often
      }
      if (std::string wrong = Make(move); !wrong.empty()) {
        return wrong;
      }
    }
    return {};
  }

  std::vector<int> fills;  // parts, in the order in which their copies were put in

 private:
  enum class Kind : std::uint8_t { kWork, kMark, kWait };
  struct Entry {
    Kind kind = Kind::kWork;
    int slot = -1;
    int part = -1;
    int mark = -1;  // kWait: -1: nothing to wait for
  };
  enum Move : int {
    kBeginKernel,
    kEndKernel,
    kMarkKernels,
    kPassKernels,
    kBeginCopy,
    kEndCopy,
    kMarkCopies,
    kPassCopies
  };

  static std::size_t At(int slot) { return static_cast<std::size_t>(slot); }
  int NewMark() {
    done_.push_back(false);
    return static_cast<int>(done_.size()) - 1;
  }
  bool Done(int mark) const { return mark < 0 || done_[At(mark)]; }

  std::vector<int> Moves() const {
    std::vector<int> moves;
    if (!running_.empty()) {
      moves.push_back(kEndKernel);
    }
    if (!kernels_.empty()) {
      const Entry& next = kernels_.front();
      // A kernel begins as soon as those before it have begun; a wait has an empty kernel behind it
      // that lets nobody pass.
      if (next.kind == Kind::kWork) {
        moves.push_back(kBeginKernel);
      } else if (next.kind == Kind::kMark) {
        moves.push_back(kMarkKernels);
      } else if (Done(next.mark) && (running_.empty() || mistake_ == Mistake::kKernelsDoNotWait)) {
        moves.push_back(kPassKernels);
      }
    }
    if (copying_.slot >= 0) {
      moves.push_back(kEndCopy);
    } else if (!copies_.empty()) {
      const Entry& next = copies_.front();
      if (next.kind == Kind::kWork) {
        moves.push_back(kBeginCopy);
      } else if (next.kind == Kind::kMark) {
        moves.push_back(kMarkCopies);
      } else if (Done(next.mark)) {
        moves.push_back(kPassCopies);
      }
    }
    return moves;
  }

  std::string Make(int move) {
    switch (move) {
      case kBeginKernel:
        running_.push_back(kernels_.front());
        kernels_.pop_front();
        return Check(running_.back());
      case kEndKernel: {  // in order: each waits for the one before
        const Entry kernel = running_.front();
        running_.pop_front();
        if (kernel.kind == Kind::kMark) {
          done_[At(kernel.mark)] = true;
          return {};
        }
        return Check(kernel);
      }
      case kMarkKernels:  // is done when all kernels before it are
        running_.push_back(kernels_.front());
        kernels_.pop_front();
        return {};
      case kPassKernels:
        kernels_.pop_front();
        return {};
      case kBeginCopy: {
        copying_ = copies_.front();
        copies_.pop_front();
        held_[At(copying_.slot)] = -1;
        const bool read = std::ranges::any_of(
            running_, [&](const Entry& kernel) { return kernel.slot == copying_.slot; });
        return read ? "a slot is filled while a kernel reads it" : "";
      }
      case kEndCopy:
        held_[At(copying_.slot)] = copying_.part;
        copying_ = {};
        return {};
      case kMarkCopies:
        done_[At(copies_.front().mark)] = true;
        copies_.pop_front();
        return {};
      default:
        copies_.pop_front();
        return {};
    }
  }
  std::string Check(const Entry& kernel) const {
    return kernel.kind == Kind::kMark || kernel.part < 0 || held_[At(kernel.slot)] == kernel.part
               ? ""
               : "a kernel reads part " + std::to_string(kernel.part) + " where part " +
                     std::to_string(held_[At(kernel.slot)]) + " lies";
  }

  std::deque<Entry> kernels_, copies_;
  std::deque<Entry> running_;  // kernels begun, and marks between them
  Entry copying_;
  std::vector<int> held_;           // by slot: the part that lies there; -1: none, or half of one
  std::vector<bool> done_;          // by mark
  std::vector<int> read_, filled_;  // by slot: the last mark
  int old_fill_ = -1;
  Mistake mistake_;
};

/// Steps over all parts in order, three kernels a part, two before the first and one behind the
/// last that read other weights.
void RunSteps(SlotSchedule& schedule, Card& card, int num_parts, int num_slots, int num_steps) {
  for (int step = 0; step < num_steps; ++step) {
    card.Launch(-1, -1);
    card.Launch(-1, -1);
    for (int part = 0; part < num_parts; ++part) {
      schedule.Switch(part - 1, part, card);
      for (int i = 0; i < 3; ++i) {
        card.Launch(part % num_slots, part);
      }
    }
    schedule.Switch(num_parts - 1, -1, card);
    card.Launch(-1, -1);
  }
}

class SlotScheduleTest : public testing::TestWithParam<std::tuple<int, int>> {};

INSTANTIATE_TEST_SUITE_P(PartsAndSlots, SlotScheduleTest,
                         testing::Combine(testing::Values(1, 2, 3, 4, 5, 8),
                                          testing::Values(2, 3)));

TEST_P(SlotScheduleTest, EveryKernelFindsItsPartInWhateverOrderTheQueuesRun) {
  const auto [num_parts, num_slots] = GetParam();
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SlotSchedule schedule(num_parts, num_slots);
    Card card(num_slots);
    RunSteps(schedule, card, num_parts, num_slots, 3);
    ASSERT_EQ(card.Run(seed), "") << "seed " << seed;
  }
}

TEST_P(SlotScheduleTest, PartsMayBeUsedInAnyOrder) {
  const auto [num_parts, num_slots] = GetParam();
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SlotSchedule schedule(num_parts, num_slots);
    Card card(num_slots);
    std::mt19937 rng(seed);
    int part = -1;
    for (int i = 0; i < 30; ++i) {
      const int next = static_cast<int>(rng() % static_cast<unsigned>(num_parts + 1)) - 1;
      if (next != part) {
        schedule.Switch(part, next, card);
        part = next;
      }
      card.Launch(part < 0 ? -1 : part % num_slots, part);
    }
    ASSERT_EQ(card.Run(seed), "") << "seed " << seed;
  }
}

TEST_P(SlotScheduleTest, CopiesAreAheadOfTheKernelsAndWrapAround) {
  const auto [num_parts, num_slots] = GetParam();
  SlotSchedule schedule(num_parts, num_slots);
  Card card(num_slots);
  RunSteps(schedule, card, num_parts, num_slots, 1);
  card.fills.clear();
  for (int step = 0; step < 3; ++step) {
    std::vector<int> copied;
    for (int part = 0; part < num_parts; ++part) {
      schedule.Switch(-1, part, card);
      EXPECT_TRUE(card.fills.empty()) << "part " << part << " was not on its way";
      schedule.Switch(part, -1, card);
      copied.insert(copied.end(), card.fills.begin(), card.fills.end());
      card.fills.clear();
    }
    std::vector<int> expected;
    for (int part = 0; part < num_parts; ++part) {
      if (schedule.IsCopiedEachStep(part)) {
        expected.push_back(part);
      }
    }
    std::ranges::sort(copied);
    EXPECT_EQ(copied, expected);
  }
}

TEST(SlotSchedule, APartThatIsAloneInItsSlotStaysThere) {
  const SlotSchedule three(3);
  EXPECT_TRUE(three.IsCopiedEachStep(0));
  EXPECT_FALSE(three.IsCopiedEachStep(1));
  EXPECT_TRUE(three.IsCopiedEachStep(2));
  EXPECT_FALSE(SlotSchedule(2).IsCopiedEachStep(0));
  EXPECT_TRUE(SlotSchedule(4).IsCopiedEachStep(1));
}

// The simulation is worth something only if it finds what it is there to find.
TEST(SlotSchedule, TheSimulatedCardCatchesMissingWaits) {
  for (const Mistake mistake :
       {Mistake::kFillDoesNotWait, Mistake::kKernelsDoNotWait, Mistake::kWaitsForAnOldFill}) {
    int caught = 0;
    for (std::uint32_t seed = 0; seed < 300; ++seed) {
      SlotSchedule schedule(5);
      Card card(kWeightSlots, mistake);
      RunSteps(schedule, card, 5, kWeightSlots, 3);
      caught += card.Run(seed).empty() ? 0 : 1;
    }
    EXPECT_GT(caught, 10) << static_cast<int>(mistake);
  }
}

}  // namespace
}  // namespace nibble
