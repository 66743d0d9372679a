#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/output_plan.h"
#include "compress/quantize.h"
#include "compress/sensitivity.h"

namespace nibble {

/// Whether any choice of options.candidates fits options.budget, before anything is measured; tells
/// options.notice of a budget that they cannot use up. Errors: kInvalidArgument with what would do.
Result<void> CheckBudget(const Checkpoint& source, const QuantizeOptions& options,
                         const OutputPlan& plan);

/// The recipe of options.candidates that fits options.budget, for what was measured; tells
/// options.notice what it spends. plan: of any of the candidates, for what is no linear. method:
/// that the recipe names. Errors: those of ChooseWithin.
Result<std::string> SpendBudget(const Checkpoint& source, const QuantizeOptions& options,
                                const OutputPlan& plan, std::span<const GroupSensitivity> groups,
                                std::string_view method);

}  // namespace nibble
