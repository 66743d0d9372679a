#include "eval/task_data.h"

#include <fmt/format.h>

#include <set>
#include <span>
#include <utility>

#include "base/limits.h"
#include "base/sha256.h"
#include "base/text.h"
#include "io/file.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxDataBytes = 1024 * limits::kMiB;

}  // namespace

DocReader::DocReader(const json::Value& doc, std::string where)
    : doc_(doc), where_(std::move(where)) {
  if (!doc.IsObject()) {
    error_ = Error{ErrorCode::kCorruptFile,
                   fmt::format("{}: expected an object, found {}", where_, doc.TypeName())};
  }
}

void DocReader::Refuse(std::string_view key, std::string_view expected) {
  if (!error_) {
    const json::Value* found = doc_.Find(key);
    error_ = Error{ErrorCode::kCorruptFile,
                   fmt::format("{}: {}: expected {}, found {}", where_, key, expected,
                               found == nullptr ? "nothing" : found->TypeName())};
  }
}

std::string DocReader::String(std::string_view key) {
  const json::Value* value = doc_.Find(key);
  if (value == nullptr || value->AsString() == nullptr) {
    Refuse(key, "a string");
    return {};
  }
  return *value->AsString();
}

std::vector<std::string> DocReader::Strings(std::string_view key) {
  const json::Value* value = doc_.Find(key);
  std::vector<std::string> strings;
  if (value != nullptr && value->AsArray() != nullptr) {
    for (const json::Value& element : *value->AsArray()) {
      if (element.AsString() == nullptr) {
        Refuse(key, "an array of strings");
        return {};
      }
      strings.push_back(*element.AsString());
    }
  }
  if (strings.empty()) {
    Refuse(key, "an array of strings");
  }
  return strings;
}

std::int64_t DocReader::Index(std::string_view key, std::size_t size) {
  const json::Value* value = doc_.Find(key);
  const auto index = value != nullptr ? value->AsInt() : std::nullopt;
  if (!index || *index < 0 || *index >= static_cast<std::int64_t>(size)) {
    Refuse(key, fmt::format("a whole number from 0 to {}", static_cast<std::int64_t>(size) - 1));
    return 0;
  }
  return *index;
}

std::string DocReader::Id(std::string_view key) {
  const json::Value* value = doc_.Find(key);
  if (value != nullptr && value->AsInt()) {
    return fmt::format("{}", *value->AsInt());
  }
  if (value == nullptr || value->AsString() == nullptr) {
    Refuse(key, "a string or a whole number");
    return {};
  }
  return *value->AsString();
}

Result<void> DocReader::status() const {
  if (error_) {
    return tl::unexpected<Error>(*error_);
  }
  return {};
}

Result<DataFile> ReadDataFile(const std::filesystem::path& data_dir, std::string_view file) {
  DataFile data{.path = data_dir / file, .sha256 = {}, .lines = {}, .line_numbers = {}};
  const auto text = ReadFile(data.path, kMaxDataBytes);
  if (!text) {
    return Fail(text.error(), "--data: ");
  }
  data.sha256 = Sha256Hex(std::as_bytes(std::span(*text)));
  std::string_view all = *text;
  constexpr std::string_view kMark = "\xEF\xBB\xBF";  // of byte order
  all.remove_prefix(all.starts_with(kMark) ? kMark.size() : 0);
  std::size_t number = 0;
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = std::min(all.find('\n', at), all.size());
    const std::string_view line = all.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    auto value = json::Parse(line);
    if (!value) {
      return Fail(value.error(), fmt::format("{}:{}: ", data.path.string(), number));
    }
    data.lines.push_back(std::move(*value));
    data.line_numbers.push_back(number);
  }
  return data;
}

Result<void> AddItems(const DataFile& file, const std::function<TaskItem(DocReader&)>& make,
                      Task& task) {
  task.data_file = file.path.filename().string();
  task.data_sha256 = file.sha256;
  std::set<std::string> ids;
  for (std::size_t i = 0; i < file.lines.size(); ++i) {
    const std::string where = fmt::format("{}:{}", file.path.string(), file.line_numbers[i]);
    DocReader reader(file.lines[i], where);
    TaskItem item = make(reader);
    NIBBLE_TRY_VOID(reader.status());
    if (!ids.insert(item.id).second) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: another item has the id {} already", where, Quote(item.id)));
    }
    task.items.push_back(std::move(item));
  }
  if (task.items.empty()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: there is no item in it", file.path.string()));
  }
  return {};
}

}  // namespace nibble
