#include "compress/certificate.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>

#include "base/limits.h"
#include "base/sha256.h"
#include "compress/file_hashes.h"
#include "io/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int kVersion = 1;
constexpr double kInt8Share = 0.05;  // of the weights' own KL that int8 activations may add
// What the golden logits' keys and values are stored in, on the CPU that records and replays them.
constexpr KvDType kGoldenKvDType = KvDType::kBF16;
constexpr std::string_view kSelfHashKey = ",\n \"sha256\": \"";

json::Value ToValue(const Certificate::ModeQuality& quality) {
  json::Object object;
  object.Set("perplexity", quality.perplexity);
  object.Set("kl_mean", quality.kl_mean);
  object.Set("kl_stderr", quality.kl_stderr);
  object.Set("kl_p99", quality.kl_p99);
  object.Set("top1", quality.top1);
  return object;
}

json::Value ToValue(const Certificate::GoldenLogits& golden) {
  json::Array top;
  for (const auto& [token, logit] : golden.top) {
    top.push_back(json::Array{Raw(token), static_cast<double>(logit)});
  }
  json::Object object;
  object.Set("sha256", golden.sha256);
  object.Set("top", std::move(top));
  return object;
}

json::Value ToValue(const std::map<std::string, std::string>& hashes) {
  json::Object object;
  for (const auto& [name, hash] : hashes) {
    object.Set(name, hash);
  }
  return object;
}

json::Value ToValue(const std::vector<Certificate::TextQuality>& texts) {
  json::Array out;
  for (const Certificate::TextQuality& text : texts) {
    json::Object one;
    one.Set("name", text.name);
    one.Set("sha256", text.sha256);
    one.Set("tokens", text.tokens);
    one.Set("context", text.context);
    one.Set("source_perplexity", text.source_perplexity);
    one.Set("int16", ToValue(text.int16));
    one.Set("int8", ToValue(text.int8));
    out.emplace_back(std::move(one));
  }
  return out;
}

// Reads members by name and remembers the first that is missing or of the wrong type.
class Reader {
 public:
  explicit Reader(const json::Value& value) : value_(value) {}

  const json::Value& Member(std::string_view key) {
    static const json::Value kNull;
    const json::Value* found = value_.Find(key);
    if (found == nullptr) {
      missing_ = missing_.empty() ? std::string(key) : missing_;
      return kNull;
    }
    return *found;
  }
  std::string String(std::string_view key) {
    const std::string* text = Member(key).AsString();
    return text == nullptr ? Missing<std::string>(key) : *text;
  }
  double Double(std::string_view key) {
    const auto number = Member(key).AsDouble();
    return number ? *number : Missing<double>(key);
  }
  std::int64_t Int(std::string_view key) {
    const auto number = Member(key).AsInt();
    return number ? *number : Missing<std::int64_t>(key);
  }
  std::map<std::string, std::string> Hashes(std::string_view key) {
    std::map<std::string, std::string> hashes;
    const json::Object* object = Member(key).AsObject();
    if (object == nullptr) {
      return Missing<std::map<std::string, std::string>>(key);
    }
    for (const auto& [name, hash] : *object) {
      const std::string* text = hash.AsString();
      if (text == nullptr) {
        return Missing<std::map<std::string, std::string>>(key);
      }
      hashes.emplace(name, *text);
    }
    return hashes;
  }
  Certificate::ModeQuality Quality(std::string_view key) {
    Reader reader(Member(key));
    const Certificate::ModeQuality quality{.perplexity = reader.Double("perplexity"),
                                           .kl_mean = reader.Double("kl_mean"),
                                           .kl_stderr = reader.Double("kl_stderr"),
                                           .kl_p99 = reader.Double("kl_p99"),
                                           .top1 = reader.Double("top1")};
    Adopt(key, reader);
    return quality;
  }
  // None where the member is absent.
  std::vector<Certificate::TextQuality> Evaluations(std::string_view key) {
    std::vector<Certificate::TextQuality> out;
    const json::Value* value = value_.Find(key);
    const json::Array* texts = value == nullptr ? nullptr : value->AsArray();
    if (value != nullptr && texts == nullptr) {
      return Missing<std::vector<Certificate::TextQuality>>(key);
    }
    for (std::size_t i = 0; texts != nullptr && i < texts->size(); ++i) {
      Reader text((*texts)[i]);
      out.push_back({.name = text.String("name"),
                     .sha256 = text.String("sha256"),
                     .tokens = text.Int("tokens"),
                     .context = text.Int("context"),
                     .source_perplexity = text.Double("source_perplexity"),
                     .int16 = text.Quality("int16"),
                     .int8 = text.Quality("int8")});
      Adopt(key, text);
    }
    return out;
  }
  Certificate::GoldenLogits Golden(std::string_view key) {
    Reader reader(Member(key));
    Certificate::GoldenLogits golden;
    golden.sha256 = reader.String("sha256");
    if (const json::Array* top = reader.Member("top").AsArray()) {
      for (const json::Value& pair : *top) {
        const json::Array* items = pair.AsArray();
        if (items != nullptr && items->size() == 2 && (*items)[0].AsInt() &&
            (*items)[1].AsDouble()) {
          golden.top.emplace_back(TokenId{static_cast<std::int32_t>(*(*items)[0].AsInt())},
                                  static_cast<float>(*(*items)[1].AsDouble()));
        }
      }
    }
    Adopt(key, reader);
    return golden;
  }
  const std::string& missing() const { return missing_; }

 private:
  template <typename T>
  T Missing(std::string_view key) {
    missing_ = missing_.empty() ? std::string(key) : missing_;
    return T{};
  }
  void Adopt(std::string_view key, const Reader& inner) {
    if (missing_.empty() && !inner.missing().empty()) {
      missing_ = fmt::format("{}.{}", key, inner.missing());
    }
  }
  const json::Value& value_;
  std::string missing_;
};

}  // namespace

ActivationMode Certificate::auto_activations() const {
  const double added = int8.kl_mean - int16.kl_mean;
  return added < kInt8Share * int16.kl_mean ? ActivationMode::kInt8 : ActivationMode::kInt16;
}

std::string ToJson(const Certificate& certificate) {
  json::Array prompt;
  for (const TokenId token : certificate.golden_prompt) {
    prompt.push_back(Raw(token));
  }
  json::Object text;
  text.Set("name", certificate.text_name);
  text.Set("sha256", certificate.text_sha256);
  text.Set("tokens", certificate.text_tokens);
  text.Set("context", certificate.text_context);
  json::Object quality;
  quality.Set("source_perplexity", certificate.source_perplexity);
  quality.Set("int16", ToValue(certificate.int16));
  quality.Set("int8", ToValue(certificate.int8));
  json::Object tables;
  tables.Set("stored", certificate.tables_stored);
  tables.Set("served", certificate.tables_served);
  json::Object golden;
  golden.Set("prompt", std::move(prompt));
  golden.Set("int16", ToValue(certificate.golden_int16));
  golden.Set("int8", ToValue(certificate.golden_int8));
  json::Object all;
  all.Set("nibble_certificate", kVersion);
  all.Set("source", certificate.source);
  all.Set("recipe", certificate.recipe);
  all.Set("text", std::move(text));
  all.Set("quality", std::move(quality));
  if (!certificate.evaluations.empty()) {
    all.Set("evaluations", ToValue(certificate.evaluations));
  }
  if (!certificate.calibration_match.IsNull()) {
    all.Set("calibration_match", certificate.calibration_match);
  }
  all.Set("auto_activations",
          certificate.auto_activations() == ActivationMode::kInt8 ? "int8" : "int16");
  all.Set("embedding_and_head", std::move(tables));
  all.Set("golden_logits", std::move(golden));
  all.Set("files", ToValue(certificate.files));
  all.Set("tensors", ToValue(certificate.tensors));
  std::string body = json::Dump(all, {.indent = 1});
  while (!body.empty() && (body.back() == '}' || body.back() == '\n')) {
    const bool end = body.back() == '}';
    body.pop_back();
    if (end) {
      break;
    }
  }
  while (!body.empty() && body.back() == '\n') {
    body.pop_back();
  }
  const std::string hash = Sha256Hex(std::as_bytes(std::span(body)));
  return fmt::format("{}{}{}\"\n}}\n", body, kSelfHashKey, hash);
}

Result<Certificate> ParseCertificate(std::string_view text, const std::string& source) {
  const auto damaged = [&](const std::string& why) {
    return Fail(
        ErrorCode::kCorruptFile,
        fmt::format(
            "{}: the certificate is damaged ({}); quantize the model again or restore the file",
            source, why));
  };
  const std::size_t at = text.rfind(kSelfHashKey);
  constexpr std::size_t kHexDigits = 64;
  if (at == std::string_view::npos ||
      text.substr(at).size() != kSelfHashKey.size() + kHexDigits + 4 ||
      text.substr(at + kSelfHashKey.size() + kHexDigits) != "\"\n}\n") {
    return damaged("it does not end with its own hash");
  }
  const std::string_view body = text.substr(0, at);
  if (Sha256Hex(std::as_bytes(std::span(body))) !=
      text.substr(at + kSelfHashKey.size(), kHexDigits)) {
    return damaged("its hash does not match");
  }
  const auto parsed = json::Parse(text);
  if (!parsed) {
    return damaged(parsed.error().message);
  }
  Reader reader(*parsed);
  if (reader.Int("nibble_certificate") != kVersion) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: certificate version {} (this nibble reads {})", source,
                            reader.Int("nibble_certificate"), kVersion));
  }
  Certificate out;
  out.source = reader.Member("source");
  out.recipe = reader.Member("recipe");
  out.files = reader.Hashes("files");
  out.tensors = reader.Hashes("tensors");
  Reader text_reader(reader.Member("text"));
  out.text_name = text_reader.String("name");
  out.text_sha256 = text_reader.String("sha256");
  out.text_tokens = text_reader.Int("tokens");
  out.text_context = text_reader.Int("context");
  Reader quality(reader.Member("quality"));
  out.source_perplexity = quality.Double("source_perplexity");
  out.int16 = quality.Quality("int16");
  out.int8 = quality.Quality("int8");
  out.evaluations = reader.Evaluations("evaluations");
  if (const json::Value* match = parsed->Find("calibration_match")) {
    out.calibration_match = *match;
  }
  Reader tables(reader.Member("embedding_and_head"));
  out.tables_stored = tables.String("stored");
  out.tables_served = tables.String("served");
  Reader golden(reader.Member("golden_logits"));
  if (const json::Array* prompt = golden.Member("prompt").AsArray()) {
    for (const json::Value& token : *prompt) {
      out.golden_prompt.push_back(TokenId{static_cast<std::int32_t>(token.AsInt().value_or(0))});
    }
  }
  out.golden_int16 = golden.Golden("int16");
  out.golden_int8 = golden.Golden("int8");
  for (const Reader* part : {&reader, &text_reader, &quality, &tables, &golden}) {
    if (!part->missing().empty()) {
      return damaged(fmt::format("no {}", part->missing()));
    }
  }
  return out;
}

fs::path CertificateFolder(const fs::path& model) {
  return model.filename() == kGgufFileName ? model.parent_path() : model;
}

Result<std::optional<Certificate>> ReadCertificate(const fs::path& folder) {
  const fs::path path = folder / kCertificateFile;
  std::error_code ignored;
  if (fs::is_directory(folder, ignored) && fs::exists(path, ignored)) {
    NIBBLE_TRY(text, ReadFile(path, limits::kConfigJsonBytes));
    NIBBLE_TRY(certificate, ParseCertificate(text, path.string()));
    return std::optional<Certificate>(std::move(certificate));
  }
  const fs::path config_path = folder / "config.json";
  if (fs::exists(config_path, ignored)) {
    NIBBLE_TRY(config, json::ParseFile(config_path.string()));
    if (config.Find(kCertificateKey) != nullptr) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: config.json promises a certificate, but {} is not there",
                              folder.string(), kCertificateFile));
    }
  }
  return std::optional<Certificate>();
}

Result<void> CheckFile(const fs::path& folder, const std::string& name,
                       const std::string& expected) {
  if (name.find('/') != std::string::npos) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: names a file outside the folder", folder.string()));
  }
  NIBBLE_TRY(hash, FileHash(folder / name));
  if (hash != expected) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: differs from its certificate: the file was damaged or changed; "
                            "quantize the model again or restore the file",
                            (folder / name).string()));
  }
  return {};
}

Result<std::optional<Certificate>> LoadCertificate(const Checkpoint& checkpoint) {
  const fs::path folder = CertificateFolder(checkpoint.path());
  NIBBLE_TRY(certificate, ReadCertificate(folder));
  if (certificate) {
    for (const auto& [name, expected] : certificate->files) {
      NIBBLE_TRY_VOID(CheckFile(folder, name, expected));
    }
  }
  return certificate;
}

Certificate::GoldenLogits DescribeGoldenLogits(std::span<const float> logits) {
  Certificate::GoldenLogits golden{.sha256 = Sha256Hex(std::as_bytes(logits)), .top = {}};
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::size_t shown = std::min<std::size_t>(5, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown), order.end(),
                    [&](std::size_t a, std::size_t b) {
                      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                    });
  for (std::size_t i = 0; i < shown; ++i) {
    golden.top.emplace_back(TokenId{static_cast<std::int32_t>(order[i])}, logits[order[i]]);
  }
  return golden;
}

Result<float> CompareGoldenLogits(const Certificate::GoldenLogits& expected,
                                  std::span<const float> logits, float tolerance) {
  double squares = 0.0;
  for (const float logit : logits) {
    squares += static_cast<double>(logit) * static_cast<double>(logit);
  }
  if (expected.top.empty() || !std::isfinite(squares)) {
    return Fail(ErrorCode::kCorruptFile,
                expected.top.empty()
                    ? "the certificate records no golden logits; quantize the model again"
                    : "the golden prompt of the certificate gives logits that are no numbers");
  }
  double scale = std::sqrt(squares / static_cast<double>(logits.size()));
  for (const auto& [token, logit] : expected.top) {
    scale = std::max(scale, std::fabs(static_cast<double>(logit)));
  }
  struct {
    std::int32_t token = 0;
    float expected = 0.0F;
    double apart = 0.0;
  } worst;
  const auto note = [&](std::int32_t token, float recorded, double apart) {
    if (apart > worst.apart) {
      worst = {.token = token, .expected = recorded, .apart = apart};
    }
  };
  std::set<std::int32_t> recorded;
  for (const auto& [token, logit] : expected.top) {
    const auto at = static_cast<std::size_t>(Raw(token));
    if (Raw(token) < 0 || at >= logits.size()) {
      return Fail(ErrorCode::kCorruptFile,
                  "the certificate's golden logits have a token beyond the vocabulary");
    }
    recorded.insert(Raw(token));
    note(Raw(token), logit, std::fabs(static_cast<double>(logits[at]) - logit));
  }
  // Every other token was at most where the last recorded one is.
  const float bound = expected.top.back().second;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto token = static_cast<std::int32_t>(i);
    if (logits[i] > bound && !recorded.contains(token)) {
      note(token, bound, static_cast<double>(logits[i]) - bound);
    }
  }
  const double difference = scale > 0.0 ? worst.apart / scale : 0.0;
  if (difference > static_cast<double>(tolerance)) {
    return Fail(
        ErrorCode::kCorruptFile,
        fmt::format("the golden logits of the certificate do not come out again: token {} at {} "
                    "where {} {} "
                    "was recorded, {:.1f} % of the largest logit apart and {:.0f} % are allowed",
                    worst.token, logits[static_cast<std::size_t>(worst.token)],
                    recorded.contains(worst.token) ? "exactly" : "at most", worst.expected,
                    100.0 * difference, 100.0F * tolerance));
  }
  return static_cast<float>(difference);
}

static Result<GoldenReplay> ReplayOnCpu(const Certificate& certificate, ModelRunner& runner) {
  const bool int8 = runner.model().activations() == ActivationMode::kInt8;
  const Certificate::GoldenLogits& expected =
      int8 ? certificate.golden_int8 : certificate.golden_int16;
  NIBBLE_TRY(logits, runner.LastLogits(certificate.golden_prompt, kGoldenKvDType));
  const Certificate::GoldenLogits found = DescribeGoldenLogits(logits);
  if (found.sha256 == expected.sha256) {
    return GoldenReplay{.kv_dtype = kGoldenKvDType};
  }
  const auto describe = [](const Certificate::GoldenLogits& golden) {
    return golden.top.empty()
               ? std::string("nothing")
               : fmt::format("token {} at {}", Raw(golden.top[0].first), golden.top[0].second);
  };
  return Fail(ErrorCode::kCorruptFile,
              fmt::format("the golden logits of the certificate do not come out again with {} "
                          "activations (expected {}, "
                          "found {}): the model would not answer as certified",
                          int8 ? "int8" : "int16", describe(expected), describe(found)));
}

// With fp16 activations, whatever the user's are: close to int16, and so are weights and card
// checked.
static Result<GoldenReplay> ReplayOnCard(const Certificate& certificate, ModelRunner& runner) {
  const KvDType own = runner.config().kv_dtype;
  const KvDType dtype = own == KvDType::kBF16 ? own : KvDType::kF16;
  const ActivationMode activations = runner.model().activations();
  runner.model().SetActivations(ActivationMode::kInt16);
  auto ran = runner.LastLogits(certificate.golden_prompt, dtype);
  runner.model().SetActivations(activations);
  NIBBLE_TRY(logits, std::move(ran));
  const auto difference = CompareGoldenLogits(certificate.golden_int16, logits, kGoldenTolerance);
  if (!difference) {
    return Fail(ErrorCode::kCorruptFile,
                difference.error().message +
                    ": the model would not answer as certified. If --device cpu takes the model, "
                    "its files are whole, and this card, its driver or this build is at fault");
  }
  return GoldenReplay{.difference = *difference, .kv_dtype = dtype};
}

Result<GoldenReplay> ReplayGoldenLogits(const Certificate& certificate, ModelRunner& runner) {
  if (!std::ranges::all_of(certificate.golden_prompt, [&](TokenId token) {
        return Raw(token) >= 0 && Raw(token) < runner.vocab_size();
      })) {
    return Fail(ErrorCode::kCorruptFile,
                "the certificate's golden prompt has a token beyond the vocabulary");
  }
  return runner.device_kind() == DeviceKind::kCuda ? ReplayOnCard(certificate, runner)
                                                   : ReplayOnCpu(certificate, runner);
}

ExpectedHashes TensorHashes(const Certificate& certificate) {
  return [&certificate](std::string_view name) -> const std::string* {
    const auto found = certificate.tensors.find(std::string(name));
    return found == certificate.tensors.end() ? nullptr : &found->second;
  };
}

Result<std::string> TensorHash(const Checkpoint& checkpoint, const WeightInfo& weight) {
  NIBBLE_TRY(parts, checkpoint.RawParts(weight));
  Sha256 hash;
  NIBBLE_TRY_VOID(GuardMappedReads(weight.file, [&]() -> Result<void> {
    for (const auto part : parts) {
      hash.Update(part);
    }
    return {};
  }));
  return hash.Hex();
}

Result<void> HashCheckpoint(const Checkpoint& checkpoint, Certificate& certificate) {
  for (const WeightInfo& weight : checkpoint.weights()) {
    NIBBLE_TRY(hash, TensorHash(checkpoint, weight));
    certificate.tensors[weight.name] = hash;
  }
  for (const auto& entry : fs::directory_iterator(CertificateFolder(checkpoint.path()))) {
    if (IsCertified(entry)) {
      NIBBLE_TRY(hash, FileHash(entry.path()));
      certificate.files[entry.path().filename().string()] = hash;
    }
  }
  return {};
}

}  // namespace nibble
