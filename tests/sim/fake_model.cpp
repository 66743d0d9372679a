#include "tests/sim/fake_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/limits.h"

namespace nibble::sim {
namespace {

constexpr std::uint64_t Mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

float LogprobOf(std::uint64_t x) { return -static_cast<float>(Mix(x) >> 44) * 0x1p-14F; }

void FillScores(SampleResult& result, std::uint64_t x, std::int32_t num_top,
                std::int64_t vocab_size) {
  result.logprob = LogprobOf(x);
  result.rank = static_cast<std::int32_t>(Mix(x + 1) % 50) + 1;
  for (std::int32_t k = 0; k < num_top; ++k) {
    const std::uint64_t y = Mix(x + 2 + static_cast<std::uint64_t>(k));
    result.top.push_back(
        {TokenId{static_cast<std::int32_t>(y % static_cast<std::uint64_t>(vocab_size))},
         LogprobOf(y)});
  }
}

constexpr std::array<const char*, 11> kPieces = {"a",  "b", "ab", "ba", "aab", "c",
                                                 "bb", "d", "ca", " ",  "abc"};

/// The one rule of the fake text: token % 12 is its piece; piece 11 is an e-acute whose bytes are
/// complete only when the next token comes.
struct FakeDecoder final : TextDecoder {
  std::string Push(TokenId token) override {
    std::string text = unfinished ? "\xC3\xA9" : "";
    const auto piece = static_cast<std::size_t>(Raw(token)) % 12;
    unfinished = piece == 11;
    return unfinished ? text : text + kPieces[piece];
  }
  std::string Finish() override { return std::exchange(unfinished, false) ? "\xEF\xBF\xBD" : ""; }
  bool unfinished = false;
};

struct FakeTextFactory final : TextDecoderFactory {
  std::unique_ptr<TextDecoder> Start(bool /*skip_special*/) const override {
    return std::make_unique<FakeDecoder>();
  }
};

bool Contains(std::span<const TokenId> tokens, TokenId token) {
  return std::ranges::find(tokens, token) != tokens.end();
}

}  // namespace

std::uint64_t Fold(std::uint64_t context, const KvEntry& entry) {
  const auto low = static_cast<std::uint32_t>(entry.token);
  const auto high = static_cast<std::uint64_t>(static_cast<std::uint32_t>(entry.position)) << 32;
  return Mix(context ^ (high | low)) ^ Mix(entry.tenant);
}

std::uint64_t TenantOf(const std::string& cache_salt) {
  std::uint64_t hash = 1;
  for (const char c : cache_salt) {
    hash = Mix(hash + static_cast<unsigned char>(c));
  }
  return hash;
}

SampleResult SampleFrom(std::uint64_t context, const SampleRow& row, std::int64_t vocab_size) {
  std::uint64_t x = context;
  if (row.temperature > 0.0F) {
    x = Mix(x ^ Mix(row.seed) ^ Mix(row.choice + 77) ^ Mix(row.position + 7777));
  }
  if (row.repetition_penalty != 1.0F || row.presence_penalty != 0.0F ||
      row.frequency_penalty != 0.0F) {
    for (const TokenId token : row.output) {
      x = Mix(x + static_cast<std::uint64_t>(Raw(token)) + 1);
    }
  }
  if (row.repetition_penalty != 1.0F) {
    for (const TokenId token : row.prompt) {
      x = Mix(x + static_cast<std::uint64_t>(Raw(token)) + 3);
    }
  }
  for (const auto& [token, bias] : row.logit_bias) {
    x = Mix(x + static_cast<std::uint64_t>(Raw(token)) + (bias > 0.0F ? 1 : 5));
  }
  auto token = TokenId{static_cast<std::int32_t>(x % static_cast<std::uint64_t>(vocab_size))};
  for (std::int64_t i = 0; i < vocab_size && Contains(row.forbidden, token); ++i) {
    token = TokenId{static_cast<std::int32_t>((Raw(token) + 1) % vocab_size)};
  }
  SampleResult result;
  result.token = token;
  if (row.num_top_logprobs >= 0) {
    FillScores(result, x, row.num_top_logprobs, vocab_size);
  }
  return result;
}

SampleResult ScoreFrom(std::uint64_t context, TokenId target, std::int32_t num_top,
                       std::int64_t vocab_size) {
  SampleResult result;
  result.token = target;
  FillScores(result, Mix(context + static_cast<std::uint64_t>(Raw(target))), num_top, vocab_size);
  return result;
}

std::unique_ptr<TextDecoderFactory> MakeFakeText() { return std::make_unique<FakeTextFactory>(); }

std::string TextOf(std::span<const TokenId> tokens, const SamplingParams& /*params*/) {
  FakeDecoder decoder;
  std::string text;
  for (const TokenId token : tokens) {
    text += decoder.Push(token);
  }
  return text + decoder.Finish();
}

Expected Predict(const GenerationRequest& request, std::int32_t choice,
                 const EngineConfig& config) {
  const SamplingParams& params = request.sampling;
  const std::uint64_t tenant = TenantOf(request.cache_salt);
  Expected expected;
  std::vector<TokenId> end_tokens = params.stop_token_ids;
  if (!params.ignore_eos) {
    end_tokens.insert(end_tokens.end(), config.eos_token_ids.begin(), config.eos_token_ids.end());
  }
  std::uint64_t context = 0;
  std::int32_t position = 0;
  for (const TokenId token : request.prompt) {
    if (position > 0 && params.num_prompt_logprobs >= 0 && choice == 0) {
      expected.prompt_scores.push_back(
          ScoreFrom(context, token, params.num_prompt_logprobs, config.vocab_size));
    }
    context = Fold(context, {Raw(token), position++, tenant});
  }
  const std::int32_t max_output = std::min(params.max_tokens, config.max_model_len - position);
  std::vector<TokenId> output;
  FakeDecoder decoder;
  while (static_cast<std::int32_t>(output.size()) < max_output) {
    SampleRow row;
    row.temperature = params.temperature;
    row.repetition_penalty = params.repetition_penalty;
    row.presence_penalty = params.presence_penalty;
    row.frequency_penalty = params.frequency_penalty;
    row.seed = params.seed;
    row.choice = static_cast<std::uint32_t>(choice);
    row.position = static_cast<std::uint64_t>(position);
    row.num_top_logprobs = params.num_logprobs;
    row.prompt = request.prompt;
    row.output = output;
    row.logit_bias = params.logit_bias;
    if (static_cast<std::int32_t>(output.size()) < params.min_tokens) {
      row.forbidden = end_tokens;
    }
    const SampleResult sample = SampleFrom(context, row, config.vocab_size);
    expected.tokens.push_back(sample);
    output.push_back(sample.token);
    context = Fold(context, {Raw(sample.token), position++, tenant});

    const bool is_end = static_cast<std::int32_t>(output.size()) >= params.min_tokens &&
                        Contains(end_tokens, sample.token);
    if (!is_end || params.include_stop_str_in_output) {
      // Character by character: the first stop string that is complete ends the text.
      for (const char c : decoder.Push(sample.token)) {
        expected.text += c;
        if (static_cast<std::int32_t>(output.size()) <= params.min_tokens) {
          continue;
        }
        const std::string* longest = nullptr;
        for (const std::string& stop : params.stop) {
          if (expected.text.ends_with(stop) &&
              (longest == nullptr || stop.size() > longest->size())) {
            longest = &stop;
          }
        }
        if (longest != nullptr) {
          if (!params.include_stop_str_in_output) {
            expected.text.resize(expected.text.size() - longest->size());
          }
          expected.finish = FinishReason::kStop;
          expected.stop_reason = *longest;
          return expected;
        }
      }
    }
    if (is_end) {
      expected.text += decoder.Finish();
      expected.finish = FinishReason::kStop;
      if (params.ignore_eos || !Contains(config.eos_token_ids, sample.token)) {
        expected.stop_reason = sample.token;
      }
      return expected;
    }
  }
  expected.text += decoder.Finish();
  return expected;
}

FakeExecutor::FakeExecutor(const EngineConfig& config, int depth, std::uint64_t seed,
                           VirtualClock& clock, const ExecutorFaults& faults)
    : config_(config), depth_(depth), clock_(clock), faults_(faults), random_(seed) {
  cache_.resize(static_cast<std::size_t>(config.num_blocks) *
                static_cast<std::size_t>(config.block_size_tokens));
  host_.resize(static_cast<std::size_t>(config.num_host_blocks) *
               static_cast<std::size_t>(config.block_size_tokens));
  slot_tokens_.assign(static_cast<std::size_t>(config.max_num_sequences), -1);
}

void FakeExecutor::Violate(const std::string& what) {
  if (violation_.empty()) {
    violation_ = what;
  }
}

std::span<KvEntry> FakeExecutor::EntriesOf(BlockId block) {
  const auto size = static_cast<std::size_t>(config_.block_size_tokens);
  return std::span(cache_).subspan(static_cast<std::size_t>(Raw(block)) * size, size);
}

std::span<KvEntry> FakeExecutor::EntriesOf(HostSlot slot) {
  const auto size = static_cast<std::size_t>(config_.block_size_tokens);
  return std::span(host_).subspan(static_cast<std::size_t>(Raw(slot)) * size, size);
}

KvEntry& FakeExecutor::EntryAt(const StepSequence& step, std::int32_t position) {
  const BlockId block =
      step.block_table[static_cast<std::size_t>(position / config_.block_size_tokens)];
  return EntriesOf(block)[static_cast<std::size_t>(position % config_.block_size_tokens)];
}

void FakeExecutor::CheckCopies(const StepPlan& plan) {
  std::set<std::int32_t> slots_written;
  std::set<std::int32_t> blocks_written;
  for (const auto* copies : {&plan.spills, &plan.restores}) {
    for (const BlockCopy& copy : *copies) {
      if (Raw(copy.block) < 0 || Raw(copy.block) >= config_.num_blocks || Raw(copy.slot) < 0 ||
          Raw(copy.slot) >= config_.num_host_blocks) {
        Violate("a copy from or to nowhere");
        return;
      }
      const bool is_new = copies == &plan.spills ? slots_written.insert(Raw(copy.slot)).second
                                                 : blocks_written.insert(Raw(copy.block)).second;
      if (!is_new) {
        Violate("a copy overwrites another of its step");
      }
      for (const Launched& earlier : in_flight_) {
        for (const Op& op : earlier.ops) {
          if (std::ranges::find(op.step.block_table, copy.block) != op.step.block_table.end()) {
            Violate("a block is copied while a step in flight uses it");
          }
        }
      }
    }
  }
}

/// What came back is this tenant's and of these positions; whether the tokens are right, the text
/// tells.
void FakeExecutor::CheckRestored(std::span<const BlockCopy> restores, const Op& op) {
  for (std::size_t b = 0; b < op.step.block_table.size(); ++b) {
    const BlockId block = op.step.block_table[b];
    if (std::ranges::find(restores, block, &BlockCopy::block) == restores.end()) {
      continue;
    }
    auto position = static_cast<std::int32_t>(b) * config_.block_size_tokens;
    for (const KvEntry& entry : EntriesOf(block)) {
      if (entry.position != position++ || entry.tenant != op.tenant) {
        Violate("a restored block holds another content");
      }
    }
  }
}

/// Copies keep the order of steps, and within a step spills come first; in a list any order does.
void FakeExecutor::CopyUpTo(std::uint64_t step) {
  for (Launched& launched : in_flight_) {
    if (launched.step > step) {
      return;
    }
    if (std::exchange(launched.copied, true)) {
      continue;
    }
    std::ranges::shuffle(launched.spills, random_);
    std::ranges::shuffle(launched.restores, random_);
    for (const BlockCopy& copy : launched.spills) {
      std::ranges::copy(EntriesOf(copy.block), EntriesOf(copy.slot).begin());
    }
    for (const BlockCopy& copy : launched.restores) {
      std::ranges::copy(EntriesOf(copy.slot), EntriesOf(copy.block).begin());
    }
    for (const Op& op : launched.ops) {
      CheckRestored(launched.restores, op);
    }
    num_spills_ += launched.spills.size();
    num_restores_ += launched.restores.size();
  }
}

void FakeExecutor::CheckPlan(const StepPlan& plan) {
  if (plan.step != last_step_ + 1) {
    Violate("step numbers must grow by one");
  }
  last_step_ = plan.step;
  if (static_cast<int>(in_flight_.size()) > depth_) {
    Violate("more steps in flight than the depth allows");
  }
  if (plan.sequences.empty()) {
    Violate("an empty step");
  }
  std::int32_t num_tokens = 0;
  std::set<std::int32_t> slots;
  std::set<std::int32_t> written;
  for (const StepSequence& step : plan.sequences) {
    num_tokens += step.num_tokens;
    if (step.num_tokens < 1 || step.first_position < 0 ||
        std::ssize(step.tokens) != step.num_tokens) {
      Violate("a chunk without tokens");
    }
    if (step.slot < 0 || step.slot >= config_.max_num_sequences ||
        !slots.insert(step.slot).second) {
      Violate("a slot is out of range or used twice in a step");
    }
    const std::int32_t end = step.first_position + step.num_tokens;
    const std::int32_t block_size = config_.block_size_tokens;
    if (std::ssize(step.block_table) != (end + block_size - 1) / block_size) {
      Violate(fmt::format("{} blocks for {} tokens", step.block_table.size(), end));
    }
    if (step.sample && step.sampling.position != static_cast<std::uint64_t>(end)) {
      Violate("the sampled position does not follow the chunk");
    }
    for (std::size_t b = static_cast<std::size_t>(step.first_position / block_size);
         b < step.block_table.size(); ++b) {
      const std::int32_t block = Raw(step.block_table[b]);
      if (!written.insert(block).second) {
        Violate("two sequences of a step write one block");
      }
      for (const Launched& earlier : in_flight_) {
        for (const Op& op : earlier.ops) {
          if (op.step.id != step.id &&
              std::ranges::find(op.step.block_table, BlockId{block}) != op.step.block_table.end()) {
            Violate("a block is written while a step in flight uses it for another sequence");
          }
        }
      }
    }
    // First come, first served; only later choices of a request may wait for the first.
    const std::uint64_t id = Raw(step.id);
    if (id % limits::kChoices == 0 && seen_.insert(id).second) {
      if (id < newest_first_choice_) {
        Violate("a request was overtaken");
      }
      newest_first_choice_ = id;
    }
    num_lookaheads_ += step.token_from_device ? 1 : 0;
  }
  if (num_tokens > config_.max_batched_tokens) {
    Violate("a step over max_batched_tokens");
  }
  CheckCopies(plan);
}

void FakeExecutor::Write(Op& op) {
  CopyUpTo(op.of_step);
  FinishEarlierOpsOf(op.step);
  op.written = true;
  for (std::int32_t i = 0; i < op.step.num_tokens; ++i) {
    std::int32_t token = Raw(op.step.tokens[static_cast<std::size_t>(i)]);
    if (op.step.token_from_device && i + 1 == op.step.num_tokens) {
      token = slot_tokens_[static_cast<std::size_t>(op.step.slot)];
    }
    const std::int32_t position = op.step.first_position + i;
    EntryAt(op.step, position) = {token, position, op.tenant};
  }
}

void FakeExecutor::Read(Op& op) {
  op.read = true;
  op.output.id = op.step.id;
  std::uint64_t context = 0;
  const std::int32_t end = op.step.first_position + op.step.num_tokens;
  for (std::int32_t position = 0; position < end; ++position) {
    context = Fold(context, EntryAt(op.step, position));
    const std::int32_t i = position - op.step.first_position;
    if (i >= 0 && !op.step.prompt_targets.empty()) {
      const TokenId target = op.step.prompt_targets[static_cast<std::size_t>(i)];
      if (Raw(target) >= 0) {
        op.output.prompt_scores.push_back(
            ScoreFrom(context, target, op.step.num_prompt_logprobs, config_.vocab_size));
      }
    }
  }
  if (op.step.sample) {
    op.output.sampled = true;
    op.output.sample = SampleFrom(context, op.step.sampling, config_.vocab_size);
    slot_tokens_[static_cast<std::size_t>(op.step.slot)] = Raw(op.output.sample.token);
  }
}

void FakeExecutor::FinishEarlierOpsOf(const StepSequence& step) {
  for (Launched& launched : in_flight_) {
    for (Op& op : launched.ops) {
      if (&op.step == &step) {
        return;
      }
      if (op.step.id == step.id || op.step.slot == step.slot) {
        if (!op.written) {
          Write(op);
        }
        if (!op.read) {
          Read(op);
        }
      }
    }
  }
}

void FakeExecutor::MarkFailed(const StepPlan& plan) {
  for (const StepSequence& step : plan.sequences) {
    failed_requests_.insert(Raw(step.id) / limits::kChoices);
  }
}

Result<Ticket> FakeExecutor::Launch(const StepPlan& plan) {
  CheckPlan(plan);
  ++num_launches_;
  if (!violation_.empty()) {
    return Fail(ErrorCode::kInternal, violation_);
  }
  std::uniform_real_distribution<double> uniform;
  if (uniform(random_) < faults_.launch_failure) {
    MarkFailed(plan);
    return Fail(ErrorCode::kUnavailable, "simulated: launch failed");
  }
  Launched launched{.step = plan.step, .spills = plan.spills, .restores = plan.restores, .ops = {}};
  for (const StepSequence& step : plan.sequences) {
    launched.ops.push_back({.of_step = plan.step,
                            .step = step,
                            .tenant = tenants_[Raw(step.id) / limits::kChoices],
                            .output = {}});
  }
  in_flight_.push_back(std::move(launched));
  if (random_() % 2 == 0) {
    CopyUpTo(plan.step);
  }
  std::vector<Op>& ops = in_flight_.back().ops;
  std::vector<std::size_t> order(ops.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = i;
  }
  std::ranges::shuffle(order, random_);
  for (const std::size_t i : order) {
    const std::uint64_t eagerness = random_() % 3;
    if (eagerness >= 1) {
      Write(ops[i]);
    }
    if (eagerness == 2) {
      Read(ops[i]);
    }
  }
  return Ticket{plan.step};
}

Result<StepResult> FakeExecutor::Retire(Ticket ticket) {
  ++num_retires_;
  if (in_flight_.empty() || in_flight_.front().step != static_cast<std::uint64_t>(ticket)) {
    Violate("retired out of order");
    return Fail(ErrorCode::kInternal, violation_);
  }
  StepResult result{in_flight_.front().step, {}};
  std::int32_t num_tokens = 0;
  StepPlan plan;
  for (Op& op : in_flight_.front().ops) {
    if (!op.written) {
      Write(op);
    }
    if (!op.read) {
      Read(op);
    }
    num_tokens += op.step.num_tokens;
    result.outputs.push_back(std::move(op.output));
    plan.sequences.push_back(std::move(op.step));
  }
  in_flight_.erase(in_flight_.begin());
  // About a 1B model on two cores.
  clock_.Advance(std::chrono::microseconds(20'000 + 2'000 * num_tokens));
  std::uniform_real_distribution<double> uniform;
  if (uniform(random_) < faults_.retire_failure) {
    MarkFailed(plan);
    return Fail(ErrorCode::kUnavailable, "simulated: step failed");
  }
  return result;
}

}  // namespace nibble::sim
