#include "json/value.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble::json {
namespace {

TEST(JsonValue, IntegersStayExactAndConvertOnlyExactly) {
  EXPECT_EQ(Value(3.0).AsInt(), 3);
  EXPECT_EQ(Value(3.5).AsInt(), std::nullopt);
  EXPECT_EQ(Value(9223372036854775808.0).AsInt(), std::nullopt);
  EXPECT_EQ(Value(-9223372036854775808.0).AsInt(), INT64_MIN);
  EXPECT_EQ(Value(18446744073709551616.0).AsUint(), std::nullopt);
  EXPECT_EQ(Value(-1).AsUint(), std::nullopt);
  EXPECT_EQ(Value(std::uint64_t{7}), Value(7));
  EXPECT_EQ(Value(UINT64_MAX).AsUint(), UINT64_MAX);
  EXPECT_EQ(Value(UINT64_MAX).AsInt(), std::nullopt);
  EXPECT_FALSE(Value(1) == Value(1.0));
  EXPECT_FALSE(Value(true) == Value(1));
}

TEST(JsonValue, NamesItsType) {
  EXPECT_STREQ(Value().TypeName(), "null");
  EXPECT_STREQ(Value(true).TypeName(), "bool");
  EXPECT_STREQ(Value(UINT64_MAX).TypeName(), "integer");
  EXPECT_STREQ(Value(0.5).TypeName(), "number");
  EXPECT_STREQ(Value("s").TypeName(), "string");
  EXPECT_STREQ(Value(Array{}).TypeName(), "array");
  EXPECT_STREQ(Value(Object{}).TypeName(), "object");
}

TEST(JsonObject, KeepsOrderAndFindsEachMemberBelowAndAboveTheIndex) {
  Object object;
  for (int i = 0; i < 1000; ++i) {
    object.Set("key" + std::to_string(i), Value(i));
    ASSERT_EQ(object.size(), static_cast<std::size_t>(i) + 1);
    for (int j = std::max(0, i - 20); j <= i; ++j) {
      const Value* const found = object.Find("key" + std::to_string(j));
      ASSERT_NE(found, nullptr) << i << ' ' << j;
      ASSERT_EQ(found->AsInt(), j);
    }
    ASSERT_EQ(object.Find("key" + std::to_string(i + 1)), nullptr);
  }
  object.Set("key5", Value("again"));  // replaced where it stands
  EXPECT_EQ(object.size(), 1000U);
  EXPECT_EQ((object.begin() + 5)->second, Value("again"));

  Object copy = object;
  for (int i = 0; i < 1000; i += 2) {
    copy.Erase("key" + std::to_string(i));
  }
  copy.Erase("never there");
  EXPECT_EQ(copy.size(), 500U);
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(copy.Find("key" + std::to_string(i)) != nullptr, i % 2 == 1) << i;
    ASSERT_NE(object.Find("key" + std::to_string(i)), nullptr) << i;
  }
  const Object moved = std::move(copy);
  EXPECT_NE(moved.Find("key999"), nullptr);
}

TEST(JsonObject, EqualityIgnoresOrder) {
  Object a;
  a.Set("x", 1);
  a.Set("y", Array{Value(), Value("s")});
  Object b;
  b.Set("y", Array{Value(), Value("s")});
  b.Set("x", 1);
  EXPECT_EQ(Value(a), Value(b));
  b.Set("x", 2);
  EXPECT_FALSE(Value(a) == Value(b));
  b.Erase("x");
  EXPECT_FALSE(Value(a) == Value(b));
}

}  // namespace
}  // namespace nibble::json
