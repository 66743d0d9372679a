#include "tokenizer/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/limits.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/unicode.h"

namespace nibble {
namespace text {
namespace {

constexpr std::string_view kMetaSpace = "\xE2\x96\x81";  // U+2581

void BuildAdded(std::vector<AddedToken> added, Tokenizer::Impl& impl) {
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (AddedToken& token : added) {
    if (token.content.empty() || !impl.added_names.Add(token.content, token.id)) {
      continue;  // empty or given twice: never found
    }
    token.pattern = token.content;
    if (token.normalized) {
      impl.normalizer.Apply(token.pattern);
    }
    (token.normalized ? normalized : raw).push_back(token);
    if (token.special) {
      impl.special.resize(std::max(impl.special.size(), static_cast<std::size_t>(token.id) + 1));
      impl.special[static_cast<std::size_t>(token.id)] = true;
    }
    impl.added.push_back(std::move(token));
  }
  std::sort(impl.added.begin(), impl.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  impl.raw_added = AddedTokenFinder(std::move(raw));
  impl.normalized_added = AddedTokenFinder(std::move(normalized));
}

void BuildPieces(Tokenizer::Impl& impl) {
  const std::int32_t size = std::max(impl.bpe.names().bound(), impl.added_names.bound());
  impl.piece_offsets.push_back(0);
  for (std::int32_t id = 0; id < size; ++id) {
    bool is_byte = false;
    if (impl.Has(id)) {
      impl.piece_bytes += impl.DecodeOne(id, /*first=*/false, &is_byte);
    }
    impl.piece_offsets.push_back(impl.piece_bytes.size());
    impl.is_byte.push_back(is_byte);
  }
}

}  // namespace

Result<std::unique_ptr<const Tokenizer::Impl>> BuildTokenizer(TokenizerSpec spec) {
  auto impl = std::make_unique<Tokenizer::Impl>();
  NIBBLE_TRY(normalizer, Normalizer::FromJson(spec.normalizer));
  NIBBLE_TRY(pre_tokenizer, PreTokenizer::FromJson(spec.pre_tokenizer));
  NIBBLE_TRY(decoder, Decoder::FromJson(spec.decoder));
  NIBBLE_TRY(affixes, AffixesFromJson(spec.post_processor));
  spec.bpe.byte_level = pre_tokenizer.byte_level();
  NIBBLE_TRY(bpe, Bpe::Build(std::move(spec.vocab), spec.merges, std::move(spec.bpe)));
  impl->normalizer = std::move(normalizer);
  impl->pre_tokenizer = std::move(pre_tokenizer);
  impl->decoder = std::move(decoder);
  impl->affixes = std::move(affixes);
  impl->bpe = std::move(bpe);
  impl->normalizer_spec = std::move(spec.normalizer);
  impl->pre_tokenizer_spec = std::move(spec.pre_tokenizer);
  impl->post_processor_spec = std::move(spec.post_processor);
  impl->decoder_spec = std::move(spec.decoder);
  impl->bos = spec.bos;
  impl->eos = spec.eos;
  impl->unk = spec.unk;
  impl->pad = spec.pad;
  BuildAdded(std::move(spec.added), *impl);
  BuildPieces(*impl);
  for (const auto* ids : {&impl->affixes.before, &impl->affixes.after}) {
    for (const TokenId id : *ids) {
      if (!impl->Has(Raw(id))) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("post_processor: no token has the id {}", Raw(id)));
      }
    }
  }
  return impl;
}

}  // namespace text

std::string Tokenizer::Impl::DecodeOne(std::int32_t id, bool first, bool* one_byte) const {
  const auto token =
      std::lower_bound(added.begin(), added.end(), id,
                       [](const text::AddedToken& a, std::int32_t b) { return a.id < b; });
  // An added token reads as what it was found as, so that decoding gives the normalised text.
  return token != added.end() && token->id == id
             ? decoder.Piece(token->pattern, true, first, one_byte)
             : decoder.Piece(Name(id), false, first, one_byte);
}

void Tokenizer::Impl::EncodeWords(std::string_view section, bool starts_text,
                                  const std::vector<bool>& blocked, text::Bpe::Scratch& scratch,
                                  std::vector<TokenId>& out) const {
  text::Pieces pieces(section);
  pre_tokenizer.Apply(pieces, starts_text);
  const bool cut = bpe.cuts_before_meta_space();
  for (const text::Span& span : pieces.spans()) {
    std::string_view word = pieces.Text(span);
    // Without a pre-tokenizer a whole text is one word; shorter ones give the same tokens sooner.
    while (cut) {
      std::size_t at = 0;
      while (word.substr(at, text::kMetaSpace.size()) == text::kMetaSpace) {
        at += text::kMetaSpace.size();
      }
      at = word.find(text::kMetaSpace, at);
      if (at == std::string_view::npos) {
        break;
      }
      bpe.Encode(word.substr(0, at), blocked, scratch, out);
      word.remove_prefix(at);
    }
    bpe.Encode(word, blocked, scratch, out);
  }
}

void Tokenizer::Impl::EncodeSection(std::string_view section, bool starts_text,
                                    const EncodeOptions& options, text::Bpe::Scratch& scratch,
                                    std::vector<TokenId>& out) const {
  static const std::vector<bool> kNothing;
  const std::vector<bool>& blocked = options.parse_special ? kNothing : special;
  std::string normalized;
  if (!normalizer.empty()) {
    normalized = section;
    normalizer.Apply(normalized);
    section = normalized;
  }
  if (normalized_added.empty()) {
    EncodeWords(section, starts_text, blocked, scratch, out);
    return;
  }
  std::vector<text::Section> parts;
  normalized_added.Cut(section, options.parse_special, parts);
  for (const text::Section& part : parts) {
    if (part.token >= 0) {
      out.push_back(TokenId{part.token});
    } else {
      EncodeWords(section.substr(part.span.begin, part.span.end - part.span.begin),
                  starts_text && part.span.begin == 0, blocked, scratch, out);
    }
  }
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view text,
                                                       std::string_view source) {
  auto spec = text::SpecFromJson(text);
  if (!spec) {
    return Fail(spec.error(), fmt::format("{}: ", source));
  }
  auto impl = text::BuildTokenizer(std::move(*spec));
  if (!impl) {
    return Fail(impl.error(), fmt::format("{}: ", source));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(*impl)));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufVocabulary& vocabulary,
                                                       std::string_view source) {
  auto spec = text::SpecFromGguf(vocabulary);
  if (!spec) {
    return Fail(spec.error(), fmt::format("{}: ", source));
  }
  auto impl = text::BuildTokenizer(std::move(*spec));
  if (!impl) {
    return Fail(impl.error(), fmt::format("{}: ", source));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(*impl)));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromFolder(const std::string& dir) {
  const std::filesystem::path folder(dir);
  const std::string path = (folder / "tokenizer.json").string();
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) {
    return Fail(
        error == std::errc::no_such_file_or_directory ? ErrorCode::kNotFound : ErrorCode::kIo,
        fmt::format("{}: {}", path, error.message()));
  }
  if (size > limits::kTokenizerJsonBytes) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("{}: {} bytes, more than {}", path, size, limits::kTokenizerJsonBytes));
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || text.size() != size) {
    return Fail(ErrorCode::kIo, fmt::format("{}: cannot be read", path));
  }
  auto spec = text::SpecFromJson(text);
  if (!spec) {
    return Fail(spec.error(), fmt::format("{}: ", path));
  }
  const std::string config_path = (folder / "tokenizer_config.json").string();
  if (std::filesystem::exists(config_path, error)) {
    NIBBLE_TRY(config, json::ParseFile(config_path));
    const auto id = [&](std::string_view key) -> std::optional<TokenId> {
      const json::Value* value = config.Find(key);
      const json::Value* content = value == nullptr ? nullptr : value->Find("content");
      const std::string* name = content != nullptr ? content->AsString()
                                : value != nullptr ? value->AsString()
                                                   : nullptr;
      if (name == nullptr) {
        return std::nullopt;
      }
      for (const text::AddedToken& token : spec->added) {
        if (token.content == *name) {
          return TokenId{token.id};
        }
      }
      const std::int32_t found = spec->vocab.Find(*name);
      return found >= 0 ? std::optional(TokenId{found}) : std::nullopt;
    };
    spec->bos = id("bos_token");
    spec->eos = id("eos_token");
    spec->unk = id("unk_token");
    spec->pad = id("pad_token");
  }
  auto impl = text::BuildTokenizer(std::move(*spec));
  if (!impl) {
    return Fail(impl.error(), fmt::format("{}: ", path));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(*impl)));
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  std::string sanitized;
  if (!text::IsValidUtf8(text)) {
    sanitized = text::SanitizeUtf8(text);
    text = sanitized;
  }
  std::vector<TokenId> ids;
  if (options.add_special_tokens) {
    ids = impl_->affixes.before;
  }
  std::vector<text::Section> sections;
  impl_->raw_added.Cut(text, options.parse_special, sections);
  text::Bpe::Scratch scratch;
  constexpr std::size_t kCacheFromBytes = 16 * limits::kKiB;
  if (text.size() >= kCacheFromBytes) {
    scratch.UseCache();
  }
  for (const text::Section& section : sections) {
    if (section.token >= 0) {
      ids.push_back(TokenId{section.token});
    } else {
      impl_->EncodeSection(text.substr(section.span.begin, section.span.end - section.span.begin),
                           section.span.begin == 0, options, scratch, ids);
    }
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), impl_->affixes.after.begin(), impl_->affixes.after.end());
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
  IncrementalDecoder decoder(*this, options);
  std::string text;
  for (const TokenId id : ids) {
    text += decoder.Push(id);
  }
  text += decoder.Finish();
  return text;
}

std::int32_t Tokenizer::vocab_size() const { return impl_->vocab_size(); }
bool Tokenizer::Has(TokenId id) const { return impl_->Has(Raw(id)); }
bool Tokenizer::IsSpecial(TokenId id) const { return impl_->IsSpecial(Raw(id)); }
std::string_view Tokenizer::TokenName(TokenId id) const { return impl_->Name(Raw(id)); }
std::optional<TokenId> Tokenizer::bos() const { return impl_->bos; }
std::optional<TokenId> Tokenizer::eos() const { return impl_->eos; }
std::optional<TokenId> Tokenizer::unk() const { return impl_->unk; }
std::optional<TokenId> Tokenizer::pad() const { return impl_->pad; }

std::string_view Tokenizer::TokenBytes(TokenId id) const {
  return Has(id) ? impl_->Piece(Raw(id)) : std::string_view();
}

std::optional<TokenId> Tokenizer::TokenToId(std::string_view name) const {
  const std::int32_t added = impl_->added_names.Find(name);
  const std::int32_t id = added >= 0 ? added : impl_->bpe.names().Find(name);
  return id >= 0 ? std::optional(TokenId{id}) : std::nullopt;
}

Result<std::string> Tokenizer::ToTokenizerJson() const {
  json::Array added;
  for (const text::AddedToken& token : impl_->added) {
    json::Object object;
    object.Set("id", std::int64_t{token.id});
    object.Set("content", token.content);
    object.Set("single_word", token.single_word);
    object.Set("lstrip", token.lstrip);
    object.Set("rstrip", token.rstrip);
    object.Set("normalized", token.normalized);
    object.Set("special", token.special);
    added.emplace_back(std::move(object));
  }
  const text::StringTable& names = impl_->bpe.names();
  json::Object vocab;
  for (std::int32_t id = 0; id < names.bound(); ++id) {
    if (names.Has(id)) {
      vocab.Set(names.Text(id), std::int64_t{id});
    }
  }
  const std::vector<text::Merge> sorted = impl_->bpe.SortedMerges();
  // The older form is read by every version of the library, but cannot spell a token with a space.
  const bool as_text = std::none_of(sorted.begin(), sorted.end(), [&](const text::Merge& merge) {
    return names.Text(merge.left).find(' ') != std::string_view::npos ||
           names.Text(merge.right).find(' ') != std::string_view::npos;
  });
  json::Array merges;
  merges.reserve(sorted.size());
  for (const text::Merge& merge : sorted) {
    if (as_text) {
      merges.emplace_back(fmt::format("{} {}", names.Text(merge.left), names.Text(merge.right)));
    } else {
      merges.emplace_back(json::Array{names.Text(merge.left), names.Text(merge.right)});
    }
  }
  const text::BpeOptions& options = impl_->bpe.options();
  json::Object model;
  model.Set("type", "BPE");
  model.Set("dropout", nullptr);
  model.Set("unk_token", options.unk_token ? json::Value(*options.unk_token) : json::Value());
  model.Set("continuing_subword_prefix", nullptr);
  model.Set("end_of_word_suffix", nullptr);
  model.Set("fuse_unk", options.fuse_unk);
  model.Set("byte_fallback", options.byte_fallback);
  model.Set("ignore_merges", options.ignore_merges);
  model.Set("vocab", std::move(vocab));
  model.Set("merges", std::move(merges));
  json::Object file;
  file.Set("version", "1.0");
  file.Set("truncation", nullptr);
  file.Set("padding", nullptr);
  file.Set("added_tokens", std::move(added));
  file.Set("normalizer", impl_->normalizer_spec);
  file.Set("pre_tokenizer", impl_->pre_tokenizer_spec);
  file.Set("post_processor", impl_->post_processor_spec);
  file.Set("decoder", impl_->decoder_spec);
  file.Set("model", std::move(model));
  return json::Dump(json::Value(std::move(file)), {.indent = 1});
}

IncrementalDecoder::IncrementalDecoder(const Tokenizer& tokenizer, const DecodeOptions& options)
    : tokenizer_(&tokenizer),
      options_(options),
      first_(options.starts_text),
      strip_(options.starts_text ? tokenizer.impl_->decoder.strip_begin() : 0) {}

void IncrementalDecoder::Append(std::string& out, std::string_view text) {
  while (strip_ > 0 && !text.empty()) {
    if (text.front() != tokenizer_->impl_->decoder.strip_char()) {
      strip_ = 0;
      break;
    }
    text.remove_prefix(1);
    --strip_;
  }
  out += text;
}

void IncrementalDecoder::DrainBytes(std::string& out, bool all) {
  using Kind = text::Utf8Prefix::Kind;
  const bool per_byte = tokenizer_->impl_->decoder.invalid() == text::Decoder::Invalid::kPerByte;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const text::Utf8Prefix prefix = text::ReadUtf8(rest);
    if (prefix.kind == Kind::kIncomplete && !all) {
      break;
    }
    if (prefix.kind == Kind::kComplete) {
      Append(out, rest.substr(0, prefix.size));
    } else {
      for (unsigned i = 0; i < (per_byte ? prefix.size : 1); ++i) {
        Append(out, text::kReplacement);
      }
    }
    rest.remove_prefix(prefix.size);
  }
  pending_.erase(0, pending_.size() - rest.size());
}

std::string IncrementalDecoder::Push(TokenId id) {
  const Tokenizer::Impl& impl = *tokenizer_->impl_;
  std::string out;
  if (!impl.Has(Raw(id)) || (options_.skip_special && impl.IsSpecial(Raw(id)))) {
    return out;
  }
  bool is_byte = false;
  const std::string first_piece = first_ ? impl.DecodeOne(Raw(id), true, &is_byte) : "";
  const std::string_view piece = first_ ? std::string_view(first_piece) : impl.Piece(Raw(id));
  first_ = false;
  using Invalid = text::Decoder::Invalid;
  const bool bytes = impl.decoder.invalid() == Invalid::kPerSubpart ||
                     impl.is_byte[static_cast<std::size_t>(Raw(id))];
  if (bytes) {
    pending_ += piece;
    DrainBytes(out, /*all=*/false);
  } else {
    DrainBytes(out, /*all=*/true);  // text ends a run of bytes
    Append(out, piece);
  }
  return out;
}

std::string IncrementalDecoder::Finish() {
  std::string out;
  DrainBytes(out, /*all=*/true);
  first_ = options_.starts_text;
  strip_ = options_.starts_text ? tokenizer_->impl_->decoder.strip_begin() : 0;
  return out;
}

}  // namespace nibble
