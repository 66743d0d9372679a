#include "eval/task_journal.h"

#include <gtest/gtest.h>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

Task TinyTask(const std::string& data = "d1") {
  Task task{.name = "t", .data_sha256 = data};
  task.items = {{.id = "a", .requests = {{}, {}}}, {.id = "b", .requests = {{}, {}}}};
  task.value_names = {"acc"};
  return task;
}

json::Value Model(const char* sha) {
  json::Object run;
  run.Set("weights_sha256", sha);
  return run;
}

ItemRecord Record() {
  return {.results = {{.logprob = -1.2345678901234567, .is_greedy = true, .num_tokens = 3},
                      {.logprob = -0.1, .is_truncated = true, .text = "two\nlines \xC3\xA9"}},
          .values = {0.1}};
}

TEST(TaskJournal, WhatWasAddedIsFoundAgainToTheLastBit) {
  const TempFolder folder;
  const auto path = folder.path() / "journal";
  const Task task = TinyTask();
  {
    const auto journal = TaskJournal::Open(path, Model("m1"));
    ASSERT_TRUE(journal) << journal.error().message;
    EXPECT_EQ((*journal)->Find(task, task.items[0]), nullptr);
    ASSERT_TRUE((*journal)->Add(task, task.items[0], Record()));
  }
  const auto journal = TaskJournal::Open(path, Model("m1"));
  ASSERT_TRUE(journal) << journal.error().message;
  EXPECT_EQ((*journal)->num_items(), 1U);
  EXPECT_EQ((*journal)->Find(task, task.items[1]), nullptr);
  const ItemRecord* found = (*journal)->Find(task, task.items[0]);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->values, Record().values);
  ASSERT_EQ(found->results.size(), 2U);
  EXPECT_EQ(found->results[0].logprob, Record().results[0].logprob);
  EXPECT_TRUE(found->results[0].is_greedy);
  EXPECT_EQ(found->results[0].num_tokens, 3);
  EXPECT_TRUE(found->results[1].is_truncated);
  EXPECT_EQ(found->results[1].text, Record().results[1].text);
}

TEST(TaskJournal, OtherDataOrPromptsAreOtherItems) {
  const TempFolder folder;
  const auto path = folder.path() / "journal";
  const Task task = TinyTask();
  ASSERT_TRUE((*TaskJournal::Open(path, Model("m1")))->Add(task, task.items[0], Record()));
  const auto journal = TaskJournal::Open(path, Model("m1"));
  ASSERT_TRUE(journal);
  EXPECT_NE((*journal)->Find(task, task.items[0]), nullptr);
  Task few = task;
  few.num_fewshot = 5;
  for (const Task& other : {TinyTask("d2"), few}) {
    EXPECT_EQ((*journal)->Find(other, other.items[0]), nullptr);
  }
}

TEST(TaskJournal, AnotherRunsJournalIsRefusedAndSoIsADamagedOne) {
  const TempFolder folder;
  const auto path = folder.path() / "journal";
  ASSERT_TRUE(TaskJournal::Open(path, Model("m1")));
  const auto other = TaskJournal::Open(path, Model("m2"));
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(other.error().message.find("another model"), std::string::npos);
  folder.Write("journal", TempFolder::Read(path) + "{\"task\":\"t\",\"id\":\"a\"}\n");
  const auto damaged = TaskJournal::Open(path, Model("m1"));
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code, ErrorCode::kCorruptFile);
  EXPECT_NE(damaged.error().message.find("journal:2"), std::string::npos)
      << damaged.error().message;
}

}  // namespace
}  // namespace nibble
