#include "json/value.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace nibble::json {
namespace {

constexpr std::size_t kIndexFrom = 17;  // members; below, a scan is faster than a hash
constexpr std::uint32_t kEmptySlot = 0xFFFF'FFFF;

// SipHash-1-3 (Aumasson, Bernstein 2012). The keys of a request are a client's bytes: with an
// unkeyed hash it could make them all collide. The key is where the loader put us, unknown to a
// client.
std::uint64_t HashKey(std::string_view text) {
  static const char anchor = 0;
  const std::uint64_t k0 = std::bit_cast<std::uint64_t>(&anchor) * 0x9E37'79B9'7F4A'7C15ULL;
  const std::uint64_t k1 = std::rotl(k0, 29) ^ 0xD1B5'4A32'D192'ED03ULL;
  std::uint64_t v0 = k0 ^ 0x736f'6d65'7073'6575ULL;
  std::uint64_t v1 = k1 ^ 0x646f'7261'6e64'6f6dULL;
  std::uint64_t v2 = k0 ^ 0x6c79'6765'6e65'7261ULL;
  std::uint64_t v3 = k1 ^ 0x7465'6462'7974'6573ULL;
  const auto round = [&] {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  };
  const auto absorb = [&](std::uint64_t word) {
    v3 ^= word;
    round();
    v0 ^= word;
  };
  std::size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + at, 8);
    absorb(word);
  }
  std::uint64_t last = static_cast<std::uint64_t>(text.size()) << 56;
  for (std::size_t i = at; i < text.size(); ++i) {
    last |= static_cast<std::uint64_t>(static_cast<unsigned char>(text[i])) << (8 * (i - at));
  }
  absorb(last);
  v2 ^= 0xFF;
  round();
  round();
  round();
  return v0 ^ v1 ^ v2 ^ v3;
}

}  // namespace

/// Open addressing over positions in members_; at most half full, so a probe ends soon.
struct Object::Index {
  std::vector<std::uint32_t> slots;

  void Rebuild(const std::vector<Member>& members) {
    slots.assign(std::bit_ceil(members.size() * 4), kEmptySlot);
    for (std::size_t i = 0; i < members.size(); ++i) {
      Insert(members[i].first, i);
    }
  }

  void Insert(std::string_view key, std::size_t position) {
    const std::size_t mask = slots.size() - 1;
    std::size_t slot = HashKey(key) & mask;
    while (slots[slot] != kEmptySlot) {
      slot = (slot + 1) & mask;
    }
    slots[slot] = static_cast<std::uint32_t>(position);
  }

  std::size_t Find(const std::vector<Member>& members, std::string_view key) const {
    const std::size_t mask = slots.size() - 1;
    for (std::size_t slot = HashKey(key) & mask; slots[slot] != kEmptySlot;
         slot = (slot + 1) & mask) {
      if (members[slots[slot]].first == key) {
        return slots[slot];
      }
    }
    return members.size();
  }
};

Object::Object() = default;
Object::~Object() = default;
Object::Object(Object&&) noexcept = default;
Object& Object::operator=(Object&&) noexcept = default;

Object::Object(const Object& other)
    : members_(other.members_),
      index_(other.index_ ? std::make_unique<Index>(*other.index_) : nullptr) {}

Object& Object::operator=(const Object& other) {
  if (this != &other) {
    Object copy(other);
    *this = std::move(copy);
  }
  return *this;
}

const Value* Object::Find(std::string_view key) const {
  if (index_) {
    const std::size_t position = index_->Find(members_, key);
    return position < members_.size() ? &members_[position].second : nullptr;
  }
  for (const Member& member : members_) {
    if (member.first == key) {
      return &member.second;
    }
  }
  return nullptr;
}

Value* Object::Find(std::string_view key) {
  return const_cast<Value*>(static_cast<const Object*>(this)->Find(key));
}

Value& Object::Set(std::string_view key, Value value) {
  if (Value* const existing = Find(key)) {
    *existing = std::move(value);
    return *existing;
  }
  members_.emplace_back(std::string(key), std::move(value));
  if (index_ && members_.size() * 2 <= index_->slots.size()) {
    index_->Insert(key, members_.size() - 1);
  } else if (members_.size() >= kIndexFrom) {
    if (!index_) {
      index_ = std::make_unique<Index>();
    }
    index_->Rebuild(members_);
  }
  return members_.back().second;
}

void Object::Erase(std::string_view key) {
  const Value* const found = Find(key);
  if (found == nullptr) {
    return;
  }
  std::size_t position = 0;
  while (&members_[position].second != found) {
    ++position;
  }
  members_.erase(members_.begin() + static_cast<std::ptrdiff_t>(position));
  if (members_.size() < kIndexFrom) {
    index_.reset();
  } else if (index_) {
    index_->Rebuild(members_);
  }
}

Value::Value(std::uint64_t u) {
  if (u <= static_cast<std::uint64_t>(INT64_MAX)) {
    data_ = static_cast<std::int64_t>(u);
  } else {
    data_ = u;
  }
}

bool Value::IsInteger() const {
  return std::holds_alternative<std::int64_t>(data_) ||
         std::holds_alternative<std::uint64_t>(data_);
}

bool Value::IsNumber() const { return IsInteger() || IsDouble(); }

std::optional<bool> Value::AsBool() const {
  const bool* const b = std::get_if<bool>(&data_);
  return b != nullptr ? std::optional(*b) : std::nullopt;
}

std::optional<std::int64_t> Value::AsInt() const {
  if (const auto* const i = std::get_if<std::int64_t>(&data_)) {
    return *i;
  }
  if (const auto* const d = std::get_if<double>(&data_)) {
    if (std::trunc(*d) == *d && *d >= -0x1p63 && *d < 0x1p63) {
      return static_cast<std::int64_t>(*d);
    }
  }
  return std::nullopt;
}

std::optional<std::uint64_t> Value::AsUint() const {
  if (const auto* const u = std::get_if<std::uint64_t>(&data_)) {
    return *u;
  }
  if (const auto* const i = std::get_if<std::int64_t>(&data_)) {
    return *i >= 0 ? std::optional(static_cast<std::uint64_t>(*i)) : std::nullopt;
  }
  if (const auto* const d = std::get_if<double>(&data_)) {
    if (std::trunc(*d) == *d && *d >= 0 && *d < 0x1p64) {
      return static_cast<std::uint64_t>(*d);
    }
  }
  return std::nullopt;
}

std::optional<double> Value::AsDouble() const {
  if (const auto* const d = std::get_if<double>(&data_)) {
    return *d;
  }
  if (const auto* const i = std::get_if<std::int64_t>(&data_)) {
    return static_cast<double>(*i);
  }
  if (const auto* const u = std::get_if<std::uint64_t>(&data_)) {
    return static_cast<double>(*u);
  }
  return std::nullopt;
}

const Value* Value::Find(std::string_view key) const {
  const Object* const object = AsObject();
  return object != nullptr ? object->Find(key) : nullptr;
}

const char* Value::TypeName() const {
  switch (data_.index()) {
    case 0:
      return "null";
    case 1:
      return "bool";
    case 2:
    case 3:
      return "integer";
    case 4:
      return "number";
    case 5:
      return "string";
    case 6:
      return "array";
    default:
      return "object";
  }
}

bool operator==(const Value& a, const Value& b) {
  const Object* const left = a.AsObject();
  const Object* const right = b.AsObject();
  if (left == nullptr || right == nullptr) {
    if (left != nullptr || right != nullptr || a.data_.index() != b.data_.index()) {
      return false;
    }
    switch (a.data_.index()) {
      case 1:
        return std::get<bool>(a.data_) == std::get<bool>(b.data_);
      case 2:
        return std::get<std::int64_t>(a.data_) == std::get<std::int64_t>(b.data_);
      case 3:
        return std::get<std::uint64_t>(a.data_) == std::get<std::uint64_t>(b.data_);
      case 4:
        return std::get<double>(a.data_) == std::get<double>(b.data_);
      case 5:
        return std::get<std::string>(a.data_) == std::get<std::string>(b.data_);
      case 6:
        return std::get<Array>(a.data_) == std::get<Array>(b.data_);
      default:
        return true;
    }
  }
  if (left->size() != right->size()) {
    return false;
  }
  for (const Object::Member& member : *left) {
    const Value* const other = right->Find(member.first);
    if (other == nullptr || !(*other == member.second)) {
      return false;
    }
  }
  return true;
}

}  // namespace nibble::json
