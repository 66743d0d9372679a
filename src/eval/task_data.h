#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "eval/task.h"
#include "json/value.h"

namespace nibble {

/// The fields of one line. The first that is missing or of another kind is kept as the error, so
/// that a loader reads all of them and asks once; what it got meanwhile is empty.
class DocReader {
 public:
  /// where: "FILE:LINE", for the error. The value must outlive the reader.
  DocReader(const json::Value& doc, std::string where);

  std::string String(std::string_view key);
  std::vector<std::string> Strings(std::string_view key);      // at least one
  std::int64_t Index(std::string_view key, std::size_t size);  // 0 <= value < size
  /// A text or a whole number, as text.
  std::string Id(std::string_view key = "id");
  const json::Value& doc() const { return doc_; }

  void Refuse(std::string_view key, std::string_view expected);
  Result<void> status() const;

 private:
  const json::Value& doc_;
  std::string where_;
  std::optional<Error> error_;
};

/// A JSONL file, read whole.
struct DataFile {
  std::filesystem::path path;
  std::string sha256;
  std::vector<json::Value> lines;
  std::vector<std::size_t> line_numbers;  // from 1; blank lines are skipped
};

/// Errors: kNotFound that says where the file was looked for; kCorruptFile with the line.
Result<DataFile> ReadDataFile(const std::filesystem::path& data_dir, std::string_view file);

/// Adds an item a line to `task`, and the file's name and hash. Errors: what a line lacks; an id
/// that comes twice; no line at all.
Result<void> AddItems(const DataFile& file, const std::function<TaskItem(DocReader&)>& make,
                      Task& task);

}  // namespace nibble
