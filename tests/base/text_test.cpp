#include "base/text.h"

#include <gtest/gtest.h>

#include "base/sha256.h"

namespace nibble {
namespace {

TEST(Quote, EscapesControlAndBrokenBytesAndCutsLongText) {
  EXPECT_EQ(Quote("plain \xC3\xA9"), "plain \xC3\xA9");
  EXPECT_EQ(Quote(std::string_view("a\0b\x1b[31m", 8)), "a\\x00b\\x1b[31m");
  EXPECT_EQ(Quote("\xC3("), "\\xc3(");
  EXPECT_EQ(Quote(std::string(100, 'x')), std::string(64, 'x') + "...");
}

TEST(IsUtf8, RejectsSurrogatesOverlongFormsAndTruncation) {
  EXPECT_TRUE(IsUtf8("\xF0\x9F\x98\x80"));
  EXPECT_FALSE(IsUtf8("\xED\xA0\x80"));
  EXPECT_FALSE(IsUtf8("\xC0\x80"));
  EXPECT_FALSE(IsUtf8("\xE2\x82"));
  EXPECT_FALSE(IsUtf8("\xF4\x90\x80\x80"));
}

TEST(HumanBytes, KeepsThreeSignificantDigits) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(98'400'000), "98.4 MB");
  EXPECT_EQ(HumanBytes(1'204'000'000), "1.20 GB");
  EXPECT_EQ(HumanBytes(999'600), "1.00 MB");
}

TEST(ParseBytes, TakesWhatVllmTakesAndUnitsInFull) {
  EXPECT_EQ(ParseBytes("0"), 0U);
  EXPECT_EQ(ParseBytes("1073741824"), 1073741824U);
  EXPECT_EQ(ParseBytes("25.6k"), 25'600U);
  EXPECT_EQ(ParseBytes("1K"), 1024U);
  EXPECT_EQ(ParseBytes("2g"), 2'000'000'000U);
  EXPECT_EQ(ParseBytes("2G"), 2ULL << 30);
  EXPECT_EQ(ParseBytes("2GiB"), 2ULL << 30);
  EXPECT_EQ(ParseBytes("1.5GB"), 1'500'000'000U);
  EXPECT_EQ(ParseBytes("1T"), 1ULL << 40);
  EXPECT_EQ(ParseBytes("7B"), 7U);
  for (const char* wrong :
       {"", "G", "-1", "1.5G", "1 G", "1x", "1GiBs", "1..5", "1e9", "9999999t"}) {
    EXPECT_EQ(ParseBytes(wrong), std::nullopt) << wrong;
  }
}

TEST(Sha256, MatchesTheStandardsExample) {
  const std::string_view abc = "abc";
  EXPECT_EQ(Sha256Hex(std::as_bytes(std::span(abc))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace nibble
