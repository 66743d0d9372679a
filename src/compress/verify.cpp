#include "compress/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "base/sha256.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "compress/certificate.h"
#include "compress/file_hashes.h"
#include "io/file.h"
#include "template/chat.h"
#include "tokenizer/tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kChunkRows = 256;  // decoded at a time
constexpr const char* kLogFile = "quantization_log.json";

// The SHA-256 that the hub cache names a blob by; small files have a Git hash, which says nothing
// here.
std::optional<std::string> BlobHash(const fs::path& file) {
  std::error_code error;
  if (!fs::is_symlink(file, error)) {
    return std::nullopt;
  }
  const fs::path blob = fs::read_symlink(file, error);
  const std::string name = blob.filename().string();
  constexpr std::size_t kHexDigits = 64;
  const bool is_hash =
      name.size() == kHexDigits && name.find_first_not_of("0123456789abcdef") == std::string::npos;
  return is_hash && blob.parent_path().filename() == "blobs" ? std::optional(name) : std::nullopt;
}

Result<std::string> WholeHash(const fs::path& path) {
  NIBBLE_TRY(file, MappedFile::Open(path));
  std::string hash;
  NIBBLE_TRY_VOID(GuardMappedReads(path.string(), [&]() -> Result<void> {
    hash = Sha256Hex(file->bytes());
    return {};
  }));
  return hash;
}

class Verifier {
 public:
  Verifier(fs::path model, int num_threads, const VerifyProgress& progress)
      : model_(std::move(model)),
        folder_(CertificateFolder(model_)),
        pool_(num_threads == 0 ? UsableCpuCount() : num_threads),
        progress_(progress) {}

  Result<Verification> Go() {
    ReadCertificate();
    if (fs::is_directory(folder_)) {
      CheckFiles();
    }
    const auto opened = Checkpoint::Open(model_.string());
    if (!opened) {
      if (!certificate_ && out_.damage.empty() && opened.error().code != ErrorCode::kCorruptFile) {
        return tl::unexpected<Error>(opened.error());  // nothing says that it was ever better
      }
      Damaged(opened.error().message);
      out_.unproven.emplace_back("the tensors: the model cannot be opened");
      return std::move(out_);
    }
    NIBBLE_TRY_VOID(CheckTensors(**opened));
    CheckText(**opened);
    return std::move(out_);
  }

 private:
  void Damaged(std::string line) { out_.damage.push_back(std::move(line)); }

  void ReadCertificate() {
    auto certificate = nibble::ReadCertificate(folder_);
    if (!certificate) {
      Damaged(certificate.error().message);
    } else {
      certificate_ = std::move(*certificate);
    }
    out_.is_certified = certificate_.has_value();
  }

  // Before anything is parsed: a damaged file is named as such.
  void CheckFiles() {
    if (certificate_) {
      for (const auto& [name, expected] : certificate_->files) {
        const auto checked = nibble::CheckFile(folder_, name, expected);
        if (!checked) {
          Damaged(checked.error().message);
        }
        out_.num_files += checked ? 1 : 0;
      }
    }
    if (!certificate_ && out_.damage.empty() && fs::exists(folder_ / kLogFile)) {
      Damaged(
          fmt::format("{}: is missing, though {} says that nibble quantize wrote this folder: "
                      "restore it, or quantize the model again",
                      (folder_ / kCertificateFile).string(), kLogFile));
    }
    std::vector<fs::directory_entry> others;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      if (IsCertified(entry) && !(certificate_ && certificate_->files.contains(name))) {
        others.push_back(entry);
      }
    }
    std::ranges::sort(others);
    for (const fs::directory_entry& entry : others) {
      CheckUncertified(entry.path());
    }
  }

  void CheckUncertified(const fs::path& file) {
    const std::string name = file.filename().string();
    if (const auto expected = BlobHash(file)) {
      const auto hash = WholeHash(file);
      if (hash && *hash == *expected) {
        ++out_.num_files;
        proven_.insert(name);
        return;
      }
      Damaged(hash ? fmt::format("{}: differs from the SHA-256 that the hub cache has of it; "
                                 "download it again",
                                 file.string())
                   : hash.error().message);
      return;
    }
    const bool is_read = file.extension() == ".json" || file.extension() == ".jinja" ||
                         file.extension() == ".safetensors" || file.extension() == ".gguf";
    if (!certificate_) {
      plain_ += plain_.empty() ? name : ", " + name;
    } else if (!is_read) {
      out_.unproven.push_back(
          fmt::format("{}: not in the certificate; nibble does not read it", file.string()));
    } else if (file.extension() == ".gguf") {
      out_.unproven.push_back(
          fmt::format("{}: the certificate, of an earlier version, has its tensors only; "
                      "quantize the model again to have its header certified",
                      file.string()));
    } else {
      Damaged(fmt::format("{}: is not in the certificate: it was added afterwards; take it away",
                          file.string()));
    }
  }

  Result<void> CheckTensors(const Checkpoint& checkpoint) {
    std::uint64_t done = 0, total = 0;
    for (const WeightInfo& weight : checkpoint.weights()) {
      total += weight.size_bytes;
    }
    std::int64_t decoded = 0;
    std::vector<std::string> damage;
    std::mutex mutex;
    const auto count = static_cast<std::int64_t>(checkpoint.weights().size());
    bool stopped = false;
    pool_.For(count, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        const WeightInfo& weight = checkpoint.weights()[static_cast<std::size_t>(i)];
        {
          const std::scoped_lock lock(mutex);
          if (stopped) {
            return;
          }
        }
        const bool hashed = IsHashed(weight);
        const auto checked = hashed ? CheckHash(checkpoint, weight) : Decode(checkpoint, weight);
        checkpoint.Release(weight);
        const std::scoped_lock lock(mutex);
        if (!checked) {
          damage.push_back(checked.error().message);
        }
        out_.num_tensors += hashed && checked ? 1 : 0;
        decoded += hashed || proven_.contains(weight.file) ? 0 : 1;
        done += weight.size_bytes;
        stopped = stopped || (progress_ && !progress_(done, total, weight.name));
      }
    });
    if (stopped) {
      return Fail(ErrorCode::kCancelled, "interrupted");
    }
    std::ranges::sort(damage);
    std::ranges::move(damage, std::back_inserter(out_.damage));
    ComparePromises(checkpoint);
    if (decoded > 0) {
      out_.unproven.push_back(
          fmt::format("{} tensors: no hash vouches for them. Each has the right shape and finite "
                      "numbers, but a flipped bit may give another number",
                      decoded));
    }
    return {};
  }

  bool IsHashed(const WeightInfo& weight) const {
    return certificate_ && certificate_->tensors.contains(weight.name);
  }

  Result<void> CheckHash(const Checkpoint& checkpoint, const WeightInfo& weight) const {
    NIBBLE_TRY(hash, TensorHash(checkpoint, weight));
    if (hash != certificate_->tensors.at(weight.name)) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: tensor {} differs from its certificate: quantize the model "
                              "again or restore the file",
                              (folder_ / weight.file).string(), weight.name));
    }
    return {};
  }

  static Result<void> Decode(const Checkpoint& checkpoint, const WeightInfo& weight) {
    for (std::int64_t row = 0; row < weight.spec.rows; row += kChunkRows) {
      NIBBLE_TRY(rows,
                 checkpoint.ReadRows(weight, row, std::min(weight.spec.rows, row + kChunkRows)));
      NIBBLE_TRY_VOID(Validate(rows));
    }
    return {};
  }

  // Both have the same tensors.
  void ComparePromises(const Checkpoint& checkpoint) {
    if (!certificate_) {
      return;
    }
    for (const auto& [name, hash] : certificate_->tensors) {
      if (checkpoint.Find(name) == nullptr) {
        Damaged(
            fmt::format("{}: tensor {} of the certificate is not there", folder_.string(), name));
      }
    }
    for (const WeightInfo& weight : checkpoint.weights()) {
      if (!IsHashed(weight)) {
        Damaged(fmt::format("{}: tensor {} is not in the certificate",
                            (folder_ / weight.file).string(), weight.name));
      }
    }
  }

  // Tokenizer and template, by structure.
  void CheckText(const Checkpoint& checkpoint) {
    if (checkpoint.gguf_vocabulary()) {
      const auto made =
          Tokenizer::FromGguf(*checkpoint.gguf_vocabulary(), checkpoint.path().string());
      if (!made) {
        Damaged(made.error().message);
      }
    } else if (checkpoint.tokenizer_json()) {
      const auto made = Tokenizer::FromFolder(checkpoint.path().string());
      if (!made) {
        Damaged(made.error().message);
      }
    } else {
      out_.unproven.emplace_back("the tokenizer: there is none");
    }
    if (checkpoint.chat_template()) {
      const auto parsed = ChatTemplate::Parse(*checkpoint.chat_template());
      if (!parsed) {
        Damaged(fmt::format("{}: the chat template: {}", folder_.string(), parsed.error().message));
      }
    }
    if (!certificate_ && (!plain_.empty() || !fs::is_directory(folder_))) {
      out_.unproven.push_back(fmt::format("{}: no certificate; what could be parsed was",
                                          plain_.empty() ? folder_.filename().string() : plain_));
    }
  }

  const fs::path model_, folder_;
  ThreadPool pool_;
  const VerifyProgress& progress_;
  std::optional<Certificate> certificate_;
  std::set<std::string> proven_;  // files whose every byte was hashed
  std::string plain_;             // files that nothing vouches for
  Verification out_;
};

}  // namespace

Result<Verification> VerifyCheckpoint(const std::string& model, const fs::path& hub_cache,
                                      int num_threads, const VerifyProgress& progress) {
  std::error_code ignored;
  fs::path path = model;
  if (!fs::exists(path, ignored)) {
    NIBBLE_TRY(found, FindInHubCache(model, hub_cache));
    path = found;
  }
  if (path.filename().empty()) {  // "folder/"
    path = path.parent_path();
  }
  return Verifier(path, num_threads, progress).Go();
}

}  // namespace nibble
