// nibble verify: is every byte of a model what its certificate says?
#include "compress/verify.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/command.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "json/value.h"

namespace nibble::cli {
namespace {

class VerifyCommand final : public Command {
 public:
  std::string name() const override { return "verify"; }
  std::string summary() const override { return "find any flipped bit in a model on disk"; }
  std::string description() const override {
    return "Reads every byte. With a certificate each tensor and each file is compared with its "
           "hash; a file of the hub\n"
           "cache with the hash that it is named by. Without them headers, shapes, numbers, "
           "tokenizer and template are\n"
           "checked, and what that cannot prove is said. Exit code 4 if anything is damaged.\n\n"
           "  nibble verify smol-int4\n"
           "  nibble verify model.gguf --json";
  }
  void Declare(OptionSet& options) override {
    options.Positional("MODEL", &model_, "a folder, a .gguf file, or a name in the hub cache");
    options.Add("--json", &json_, "print one JSON object on standard output");
  }

  Result<int> Run(const Environment& environment) override {
    CatchInterrupts();
    Progress progress("verifying");
    NIBBLE_TRY(found, VerifyCheckpoint(
                          model_, environment.hub_cache, environment.num_threads,
                          [&](std::uint64_t done, std::uint64_t total, const std::string& detail) {
                            return progress.Update(done, total, detail);
                          }));
    progress.Finish();
    if (json_) {
      fmt::print("{}\n",
                 json::Dump(ToValue(found), {.item_separator = ", ", .key_separator = ": "}));
    } else {
      Print(found);
    }
    return found.damage.empty() ? kExitOk : kExitModel;
  }

 private:
  static json::Value ToValue(const Verification& found) {
    const auto lines = [](const std::vector<std::string>& all) {
      json::Array out;
      std::ranges::copy(all, std::back_inserter(out));
      return out;
    };
    json::Object out;
    out.Set("whole", found.damage.empty());
    out.Set("certified", found.is_certified);
    out.Set("proven_files", found.num_files);
    out.Set("proven_tensors", found.num_tensors);
    out.Set("damage", lines(found.damage));
    out.Set("unproven", lines(found.unproven));
    return out;
  }

  void Print(const Verification& found) const {
    for (const std::string& line : found.damage) {
      fmt::print("damaged   {}\n", line);
    }
    for (const std::string& line : found.unproven) {
      fmt::print("unproven  {}\n", line);
    }
    fmt::print(
        "{}: {}; hashes prove {} tensors and {} files{}\n", model_,
        found.damage.empty() ? "no damage found" : fmt::format("{} damaged", found.damage.size()),
        found.num_tensors, found.num_files, found.is_certified ? "" : " (there is no certificate)");
  }

  std::string model_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeVerifyCommand() { return std::make_unique<VerifyCommand>(); }

}  // namespace nibble::cli
