#pragma once

#include <string>

namespace nibble {

/// A library of the card's vendor, found at run time: the program runs with and without it, and
/// links to none. Opened libraries stay open. Only the names below are ever opened.
class VendorLibrary {
 public:
  enum class Name { kCuda, kNvml, kCudart, kCublas, kCublasLt, kCusolver, kNccl };

  /// Looks where the loader looks, then in the toolkit's folder.
  explicit VendorLibrary(Name name);

  bool found() const { return handle_ != nullptr; }
  /// Where it was found; empty if nowhere.
  const std::string& path() const { return path_; }
  /// Why it is of no use although its file is there, in the loader's words; empty otherwise.
  const std::string& problem() const { return problem_; }
  /// What was looked for: "libcublasLt.so.13".
  static const char* FileName(Name name);

  /// A function by its name, null if the library, or the function in it, is missing.
  template <typename Function>
  Function* Find(const char* symbol) const {
    return reinterpret_cast<Function*>(FindSymbol(symbol));
  }
  /// Calls a function of the driver's or NVML's kind, whose result is 0 where it succeeded.
  template <typename Function, typename... Args>
  int Call(const char* symbol, Args... args) const {
    Function* function = Find<Function>(symbol);
    return function == nullptr ? kNoFunction : function(args...);
  }
  static constexpr int kNoFunction = -1;

 private:
  void* FindSymbol(const char* symbol) const;
  void* handle_ = nullptr;
  std::string path_;
  std::string problem_;
};

}  // namespace nibble
