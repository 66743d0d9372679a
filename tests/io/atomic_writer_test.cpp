#include "io/atomic_writer.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using testing::TempFolder;

const json::Value kRecipe = json::Object();

json::Value Recipe(int seed) {
  json::Object object;
  object.Set("seed", seed);
  object.Set("ratio", 0.1);
  return object;
}

std::unique_ptr<AtomicWriter> MustCreate(const fs::path& target, const json::Value& recipe) {
  auto writer = AtomicWriter::Create(target, recipe, 1000);
  EXPECT_TRUE(writer) << writer.error().message;
  return writer ? std::move(*writer) : nullptr;
}

TEST(AtomicWriter, TheFolderAppearsWholeAtCommit) {
  const TempFolder folder;
  const fs::path target = folder.path() / "deep" / "out";
  auto writer = MustCreate(target, Recipe(1));
  ASSERT_TRUE(writer->WriteWhole("a.json", "{}"));
  auto file = writer->OpenFile("b.bin");
  ASSERT_TRUE(file);
  const std::string piece(100'000, 'x');
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE((*file)->Write(std::as_bytes(std::span(piece))));
  }
  ASSERT_TRUE((*file)->Finish());
  EXPECT_FALSE((*file)->Write(std::as_bytes(std::span(piece))));  // finished
  EXPECT_FALSE(fs::exists(target));
  EXPECT_TRUE(fs::exists(writer->partial_path() / "a.json"));
  const auto committed = writer->Commit();
  ASSERT_TRUE(committed) << committed.error().message;
  EXPECT_EQ(TempFolder::Read(target / "a.json"), "{}");
  EXPECT_EQ(fs::file_size(target / "b.bin"), 300'000U);
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(target.parent_path())) {
    ++entries;
  }
  EXPECT_EQ(entries, 1);  // no partial folder and no journal stay behind
}

TEST(AtomicWriter, ASingleFileAppearsUnderTheTargetsName) {
  const TempFolder folder;
  const fs::path target = folder.path() / "model.gguf";
  auto writer = MustCreate(target, Recipe(1));
  ASSERT_TRUE(writer->WriteWhole("data", "bytes"));
  ASSERT_TRUE(writer->OpenFile("second"));
  EXPECT_FALSE(writer->CommitFile("data"));  // the second is not finished
  ASSERT_TRUE(writer->Remove("second"));
  const auto committed = writer->CommitFile("data");
  ASSERT_TRUE(committed) << committed.error().message;
  EXPECT_EQ(TempFolder::Read(target), "bytes");
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder.path())) {
    ++entries;
  }
  EXPECT_EQ(entries, 1);
}

TEST(AtomicWriter, AnInterruptedRunGoesOn) {
  const TempFolder folder;
  const fs::path target = folder.path() / "out";
  {
    auto writer = MustCreate(target, Recipe(1));
    auto file = writer->OpenFile("shard-1");
    ASSERT_TRUE(file);
    ASSERT_TRUE((*file)->Write(std::as_bytes(std::span("one", 3))));
    ASSERT_TRUE((*file)->Finish(Recipe(7)));
    ASSERT_TRUE(writer->WriteWhole("shard-2", "two"));
    auto unfinished = writer->OpenFile("shard-3");
    ASSERT_TRUE((*unfinished)->Write(std::as_bytes(std::span("thr", 3))));
  }
  EXPECT_FALSE(fs::exists(target));
  folder.Write(".out.partial/shard-2", "TWO");  // damaged meanwhile
  auto writer = MustCreate(target, Recipe(1));
  EXPECT_FALSE(fs::exists(writer->partial_path() / "shard-3"));  // half a file is no file
  EXPECT_TRUE(writer->IsDone("shard-1"));
  ASSERT_TRUE(writer->DoneFacts("shard-1"));
  EXPECT_EQ(*writer->DoneFacts("shard-1"), Recipe(7));
  EXPECT_FALSE(writer->IsDone("shard-2"));
  EXPECT_FALSE(writer->DoneFacts("shard-2"));
  EXPECT_FALSE(writer->IsDone("shard-3"));
  EXPECT_FALSE(writer->Commit());  // shard-2 and shard-3 are not finished
  ASSERT_TRUE(writer->WriteWhole("shard-2", "two"));
  ASSERT_TRUE(writer->WriteWhole("shard-3", "three"));
  ASSERT_TRUE(writer->Commit());
  EXPECT_EQ(TempFolder::Read(target / "shard-1"), "one");
  EXPECT_EQ(TempFolder::Read(target / "shard-3"), "three");
}

TEST(AtomicWriter, WhatOnlyServedTheRunIsTakenAway) {
  const TempFolder folder;
  const fs::path target = folder.path() / "out";
  {
    auto writer = MustCreate(target, Recipe(1));
    ASSERT_TRUE(writer->WriteWhole("work.bin", "for later"));
    ASSERT_TRUE(writer->WriteWhole("kept.bin", "result"));
  }
  auto writer = MustCreate(target, Recipe(1));
  EXPECT_TRUE(writer->IsDone("work.bin"));
  ASSERT_TRUE(writer->Remove("work.bin"));
  ASSERT_TRUE(writer->Remove("work.bin")) << "a second time";
  EXPECT_FALSE(writer->Remove("../kept.bin"));
  EXPECT_FALSE(writer->IsDone("work.bin"));
  EXPECT_TRUE(writer->IsDone("kept.bin"));
  const auto committed = writer->Commit();
  ASSERT_TRUE(committed) << committed.error().message;
  EXPECT_FALSE(fs::exists(target / "work.bin"));
  EXPECT_EQ(TempFolder::Read(target / "kept.bin"), "result");
}

TEST(AtomicWriter, ATornJournalLosesOnlyItsLastLine) {
  const TempFolder folder;
  const fs::path target = folder.path() / "out";
  {
    auto writer = MustCreate(target, Recipe(1));
    ASSERT_TRUE(writer->WriteWhole("a", "a"));
    ASSERT_TRUE(writer->WriteWhole("b", "b"));
  }
  const fs::path journal = folder.path() / ".out.partial.journal";
  const std::string whole = TempFolder::Read(journal);
  for (std::size_t size = 0; size <= whole.size(); size += size + 8 < whole.size() ? 7 : 1) {
    fs::resize_file(journal, 0);
    folder.Write(".out.partial.journal", whole.substr(0, size));
    folder.Write(".out.partial/a", "a");  // what is not in the journal goes
    folder.Write(".out.partial/b", "b");
    auto writer = MustCreate(target, Recipe(1));
    EXPECT_TRUE(!writer->IsDone("b") || writer->IsDone("a"));
    EXPECT_EQ(writer->IsDone("b"), size == whole.size()) << size;
    const std::string after = TempFolder::Read(journal);
    EXPECT_TRUE(after.ends_with("\n"));
  }
}

TEST(AtomicWriter, AnotherRecipeIsRefusedAndTheWayOutIsNamed) {
  const TempFolder folder;
  const fs::path target = folder.path() / "out";
  ASSERT_TRUE(MustCreate(target, Recipe(1))->WriteWhole("a", "a"));
  const auto other = AtomicWriter::Create(target, Recipe(2), 0);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(other.error().message.find("rm -r"), std::string::npos);
  fs::remove_all(folder.path() / ".out.partial");
  EXPECT_TRUE(AtomicWriter::Create(target, Recipe(2), 0));  // the stale journal does not matter
}

TEST(AtomicWriter, DiscardLeavesNothing) {
  const TempFolder folder;
  auto writer = MustCreate(folder.path() / "out", Recipe(1));
  ASSERT_TRUE(writer->WriteWhole("a", "a"));
  writer->Discard();
  EXPECT_TRUE(fs::is_empty(folder.path()));
  EXPECT_TRUE(AtomicWriter::Create(folder.path() / "out", Recipe(2), 0));
}

TEST(AtomicWriter, WhatExistsIsNeverReplaced) {
  const TempFolder folder;
  const fs::path target = folder.path() / "out";
  fs::create_directory(target);
  EXPECT_EQ(AtomicWriter::Create(target, kRecipe, 0).error().code, ErrorCode::kInvalidArgument);
  fs::remove(target);
  auto writer = MustCreate(target, kRecipe);
  ASSERT_TRUE(writer->WriteWhole("a", "a"));
  fs::create_directory(target);  // appears meanwhile
  EXPECT_EQ(writer->Commit().error().code, ErrorCode::kInvalidArgument);
  fs::remove(target);
  EXPECT_TRUE(writer->Commit());
}

TEST(AtomicWriter, OneProcessOwnsThePartialFolder) {
  const TempFolder folder;
  auto writer = MustCreate(folder.path() / "out", kRecipe);
  const auto second = AtomicWriter::Create(folder.path() / "out", kRecipe, 0);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  writer.reset();
  EXPECT_TRUE(AtomicWriter::Create(folder.path() / "out", kRecipe, 0));
}

TEST(AtomicWriter, AKilledProcessLeavesNothingUnderTheFinalNameAndIsResumed) {
  const TempFolder folder;
  const fs::path target = folder.path() / "out";
  const pid_t child = fork();
  if (child == 0) {
    auto writer = AtomicWriter::Create(target, Recipe(3), 0);
    if (writer && (*writer)->WriteWhole("a", "finished")) {
      auto file = (*writer)->OpenFile("b");
      static_cast<void>((*file)->Write(std::as_bytes(std::span("half", 4))));
    }
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(target));
  auto writer = MustCreate(target, Recipe(3));
  EXPECT_TRUE(writer->IsDone("a"));
  EXPECT_FALSE(writer->IsDone("b"));
}

TEST(AtomicWriter, TooLittleSpaceIsSaidBeforeTheWork) {
  const TempFolder folder;
  const auto writer = AtomicWriter::Create(folder.path() / "out", kRecipe, std::uint64_t{1} << 60);
  ASSERT_FALSE(writer);
  EXPECT_EQ(writer.error().code, ErrorCode::kIo);
  EXPECT_NE(writer.error().message.find("needed"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(folder.path())) << "nothing was done, but something is left";
}

TEST(AtomicWriter, NamesStayInsideTheFolder) {
  const TempFolder folder;
  auto writer = MustCreate(folder.path() / "out", kRecipe);
  for (const char* name : {"", ".", "..", "../x", "a/b", "/etc/x"}) {
    EXPECT_FALSE(writer->OpenFile(name)) << name;
  }
  fs::create_symlink("/tmp/nibble_should_not_exist", writer->partial_path() / "link");
  EXPECT_FALSE(writer->OpenFile("link"));
}

}  // namespace
}  // namespace nibble
