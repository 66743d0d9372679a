#include "checkpoint/gguf_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/folder_format.h"
#include "codec/encode.h"

namespace nibble {
namespace {

std::uint32_t Crc32(std::span<const std::byte> bytes) {
  std::uint32_t crc = ~0U;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0xedb88320U : 0U);
    }
  }
  return ~crc;
}

std::string FromHex(std::string_view hex) {
  std::string out;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    out.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return out;
}

// x[i] = ((37 i) mod 101 - 50) / 16.
std::vector<float> Vector() {
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i) {
    x[static_cast<std::size_t>(i)] = static_cast<float>(37 * i % 101 - 50) / 16.0F;
  }
  return x;
}

QuantizedTensor Decode(GgufType type, const std::string& blocks, std::int64_t cols) {
  QuantizedTensor out;
  out.spec = *GgufSpecOf(static_cast<std::uint32_t>(type));
  const auto block = *GgufBlockOf(static_cast<std::uint32_t>(type));
  out.spec.cols = cols;
  const auto row_bytes = static_cast<std::size_t>(cols / block.elements * block.bytes);
  out.spec.rows = static_cast<std::int64_t>(blocks.size() / row_bytes);
  out.codes.resize(static_cast<std::size_t>(out.spec.rows * cols));
  out.scales.resize(static_cast<std::size_t>(out.spec.rows * out.spec.num_groups()));
  out.minima.resize(out.spec.kind == CodecKind::kMinimum ? out.scales.size() : 0);
  for (std::int64_t row = 0; row < out.spec.rows; ++row) {
    DecodeGgufRow(type,
                  reinterpret_cast<const std::byte*>(blocks.data()) +
                      static_cast<std::size_t>(row) * row_bytes,
                  out, row);
  }
  EXPECT_TRUE(Validate(out));
  return out;
}

// Reference, section 13.3: what ggml made of x, and the CRC of what it decodes from that.
struct Super {
  GgufType type;
  std::uint32_t decoded_crc;
  const char* block;
};
constexpr Super kSupers[] = {
    {GgufType::kQ2_K, 0x5b27b821U,
     "dedecddffedeffcedebcdeeedcefbeef68b1d66cb11b6c861bb1c66cb1d66cb21b6d861b71c628b1d76cb61b"
     "6d861bb11b7d862b71c62cb1db6c861b718628b1db6cb51b6c861ba1c66cb1db6cb61b6c01309d32"},
    {GgufType::kQ3_K, 0x6c3f2875U,
     "86dc2bc6fd23d67923dc3986fc2bd6fda451fe045bae05fbae51fba459fe045b4827e28d7823de897722dd88"
     "77e29d785df2b79c2db68b5de2f7485d22b7882dfd6297c82d528bf8225688fd2e578b3de2c7787dd29bbc2d"
     "968b7de2d7787dd2b69ab69a653aa600303ff033dea7"},
    {GgufType::kQ4_K, 0x8514441fU,
     "de1e2c2afefffffcfffdfefecfdcfffea0156bc1278cd3489e045ab0167bc2378de349ae056ab1267cd2389d"
     "e459af15268ce248ad0459b0157bd1379ce348ae046ac0267bd2379df359be156ac1268c9df359be157ac126"
     "8ce248ad0459b0157bd1379ce348ae046ac0267bd2379df3156ac1268cd2489df459b0157bc1378ce348ae04"
     "6ab0267bd2379de359ae156a"},
    {GgufType::kQ5_K, 0x75ef537aU,
     "8e1a532afffdfdfdfffcfeffdfeffdcf326c9936cc9366c9b36499324c9926cc9366c9336c99364c9b66cdb3"
     "66d9336c702be7a35f1ad6824d09c5813cf8b46f2be7935e1ad6824d09c5703cf8a36f2b5e1ad5914d09c480"
     "3cf8b36f2be6a25e1ad5914d09c4703cf7b36f2be6a25e1a3be8b36e2be6925e19c5814c08b4703cf7a36f2a"
     "d6925d19c5814c08b4703be71bd7824e0ab5713de9a4602cd8935f1bc6824e0ab5713de9a4601cd7935f1bc6"},
    {GgufType::kQ6_K, 0xa8b369b7U,
     "d158bf37be25ad048b047bf37ad159d0c941ea63eb74fb741d951ea72fc841c9bf35ad169b048df26be069d1"
     "47cf38bd1a922c840d85ed77ff57d038b04aa22b67df58c139b22aa22b931c85fd76ee57ce5ad137b31a902c"
     "830f86ec78ff55d1c841da62eb63fc840d951ea63fb840c9d129b30b931c74fe86de67ff47d129b118b1c66c"
     "b11b6c861b71c61cb1c76cb22453f9248ef9138ef4538d2452f9248ed4a209d47e09a37e14a349d4ae09d77e"
     "c863be1463c9147ec923bec463bd1463807f897a867a84877f737d7a81877c897592"},
};

TEST(GgufBlocks, KQuantsDecodeToTheBitsOfGgml) {
  for (const Super& one : kSupers) {
    const QuantizedTensor tensor = Decode(one.type, FromHex(one.block), 256);
    const std::vector<float> values = Dequantize(tensor);
    EXPECT_EQ(Crc32(std::as_bytes(std::span(values))), one.decoded_crc)
        << GgufTypeName(static_cast<std::uint32_t>(one.type));
    const auto again = EncodeGgufRows(one.type, tensor);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(Dequantize(Decode(one.type, *again, 256)), values);
  }
}

// The encoders of ggml, reference section 9.3.
QuantizedTensor EncodeAsGgml(GgufType type, std::span<const float> x) {
  QuantizedTensor out;
  out.spec = *GgufSpecOf(static_cast<std::uint32_t>(type));
  out.spec.rows = 1;
  out.spec.cols = static_cast<std::int64_t>(x.size());
  const auto half = [](float v) { return RoundToDType(v, DType::kF16); };
  for (std::size_t begin = 0; begin < x.size(); begin += 32) {
    const auto block = x.subspan(begin, 32);
    const float low = *std::ranges::min_element(block);
    const float high = *std::ranges::max_element(block);
    const int top = (1 << out.spec.bits) - 1;
    if (out.spec.kind == CodecKind::kMinimum) {
      const float d = (high - low) / static_cast<float>(top);
      for (const float v : block) {
        out.codes.push_back(static_cast<std::uint8_t>(
            std::min(static_cast<float>(top), std::floor((v - low) * (1.0F / d) + 0.5F))));
      }
      out.scales.push_back(half(d));
      out.minima.push_back(half(low));
    } else if (type == GgufType::kQ8_0) {
      const float d = std::max(-low, high) / 127.0F;
      for (const float v : block) {
        out.codes.push_back(static_cast<std::uint8_t>(std::roundf(v * (1.0F / d)) + 128.0F));
      }
      out.scales.push_back(half(d));
    } else {
      float largest = 0.0F;
      for (const float v : block) {
        largest = std::fabs(v) > std::fabs(largest) ? v : largest;
      }
      const float middle = static_cast<float>(1 << (out.spec.bits - 1));
      const float d = largest / -middle;
      for (const float v : block) {
        out.codes.push_back(static_cast<std::uint8_t>(
            std::min(static_cast<float>(top), std::floor(v * (1.0F / d) + middle + 0.5F))));
      }
      out.scales.push_back(half(d));
    }
  }
  return out;
}

TEST(GgufBlocks, BlocksOf32AreThoseOfGgml) {
  const struct {
    GgufType type;
    std::uint32_t bytes_crc, decoded_crc;
    const char* first_block;
  } types[] = {
      {GgufType::kQ4_0, 0x6ab6d55fU, 0x9c633753U, "4036e046acf258bd1379df358be046acf268"},
      {GgufType::kQ4_1, 0xaa421c99U, 0x17a69c50U, "ab3640c2d0369bf257bd1369ce258ae0469cf258"},
      {GgufType::kQ5_0, 0x832fff14U, 0x5c0bbcaeU, "4032a4a52d6dc07c38f3bf6b26e2ae5a15d18d49f4c0"},
      {GgufType::kQ5_1, 0xb063b949U, 0x50c73f3eU,
       "743240c2a4a52d6db07b37e3af6a26d29d5905c18c48f4b0"},
      {GgufType::kQ8_0, 0xdda36b66U, 0xe0183bd5U,
       "4d2681df3d9af856b41270cd2b89e745a2005ebb1977d53390ee4caa0866c3217fdc"},
  };
  for (const auto& one : types) {
    const std::string name = GgufTypeName(static_cast<std::uint32_t>(one.type));
    const QuantizedTensor tensor = EncodeAsGgml(one.type, Vector());
    const auto bytes = EncodeGgufRows(one.type, tensor);
    ASSERT_TRUE(bytes) << bytes.error().message;
    const std::string first = FromHex(one.first_block);
    EXPECT_EQ(bytes->substr(0, first.size()), first) << name;
    EXPECT_EQ(Crc32(std::as_bytes(std::span(*bytes))), one.bytes_crc) << name;
    const QuantizedTensor back = Decode(one.type, *bytes, 256);
    EXPECT_EQ(back.codes, tensor.codes) << name;
    EXPECT_EQ(back.scales, tensor.scales) << name;
    const std::vector<float> values = Dequantize(back);
    EXPECT_EQ(Crc32(std::as_bytes(std::span(values))), one.decoded_crc) << name;
  }
}

// Any bytes are a block of a K-quant, if d and dmin are numbers: written again, they mean the same.
TEST(GgufBlocks, AnyKQuantIsWrittenAgainAsItIs) {
  std::uint32_t state = 1;
  const auto next = [&] { return (state = state * 1664525U + 1013904223U) >> 16U; };
  for (const Super& one : kSupers) {
    const auto bytes =
        static_cast<std::size_t>(GgufBlockOf(static_cast<std::uint32_t>(one.type))->bytes);
    const std::string golden = FromHex(one.block);
    for (int i = 0; i < 200; ++i) {
      std::string block(bytes, '\0');
      for (char& byte : block) {
        byte = static_cast<char>(next());
      }
      // d and dmin as ggml chose them, a little moved: at the front or at the end.
      for (const std::size_t at : {std::size_t{0}, bytes - 4}) {
        block.replace(at, 4, golden.substr(at, 4));
      }
      const QuantizedTensor tensor = Decode(one.type, block, 256);
      const auto again = EncodeGgufRows(one.type, tensor);
      ASSERT_TRUE(again) << again.error().message;
      const QuantizedTensor back = Decode(one.type, *again, 256);
      EXPECT_EQ(back.codes, tensor.codes);
      EXPECT_EQ(Dequantize(back), Dequantize(tensor));
    }
  }
}

TEST(GgufBlocks, WhatABlockCannotHoldIsNamed) {
  QuantizedTensor tensor = EncodeAsGgml(GgufType::kQ4_0, Vector());
  EXPECT_FALSE(EncodeGgufRows(GgufType::kQ5_0, tensor));
  tensor.scales[2] = 0.1F;
  const auto inexact = EncodeGgufRows(GgufType::kQ4_0, tensor);
  ASSERT_FALSE(inexact);
  EXPECT_NE(inexact.error().message.find("column 64"), std::string::npos);
  for (const Super& one : kSupers) {
    QuantizedTensor super = Decode(one.type, FromHex(one.block), 256);
    super.scales[3] *= 1.001F;
    const auto refused = EncodeGgufRows(one.type, super);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("whole multiples"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
