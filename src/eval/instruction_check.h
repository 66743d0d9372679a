#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "json/value.h"

namespace nibble {

/// One verifiable instruction of IFEval (Zhou et al. 2023), judged as
/// google-research/instruction_following_eval judges it.
class InstructionCheck {
 public:
  /// id: "punctuation:no_comma"; arguments: the instruction's `kwargs`, null counts as absent. What
  /// the original judges by a language detector or by NLTK's sentence model, or with an argument
  /// that it draws at random, becomes a check that does not judge. Errors: kInvalidArgument for an
  /// unknown id or an argument of the wrong type, kUnsupported for a keyword that is no pattern.
  static Result<InstructionCheck> Create(std::string_view id, const json::Object& arguments);

  bool judges() const { return static_cast<bool>(follows_); }
  /// Where it does not judge: what would be needed.
  const std::string& reason() const { return reason_; }

  /// Is the instruction followed? An empty response follows none. Only where it judges.
  bool FollowsStrictly(std::string_view response) const;
  /// The same of the response or of one without its first line, its last line, both, its asterisks.
  bool FollowsLoosely(std::string_view response) const;

  using Predicate = std::function<bool(std::string_view response)>;

 private:
  Predicate follows_;
  std::string reason_;
};

}  // namespace nibble
