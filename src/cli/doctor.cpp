// nibble doctor: what this machine has, and what is missing for what.
#include <fmt/format.h>
#include <sys/utsname.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/text.h"
#include "base/thread_pool.h"
#include "cli/command.h"
#include "device/cuda_info.h"
#include "device/device.h"
#include "json/value.h"
#include "kernels/isa.h"

namespace nibble::cli {
namespace {

std::string Human(std::uint64_t bytes) { return HumanBytes(static_cast<double>(bytes)); }

// "Debian GNU/Linux 12 (bookworm)".
std::string SystemName() {
  std::ifstream file("/etc/os-release");
  constexpr std::string_view kKey = "PRETTY_NAME=";
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(kKey)) {
      std::string name = line.substr(kKey.size());
      std::erase(name, '"');
      return Quote(name);
    }
  }
  return "Linux";
}

std::string Version(int version) {
  return version == 0 ? "" : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::vector<std::string> KernelLevels() {
  std::vector<std::string> names;
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) {
      names.emplace_back(Name(isa));
    }
  }
  return names;
}

// What is missing, and for what. Empty: nothing.
std::vector<std::string> Missing(const CudaInfo& cuda, const MachineMemory& memory) {
  std::vector<std::string> missing;
  if (DetectIsa() < Isa::kAvx2) {
    missing.emplace_back("AVX2: the CPU runs the scalar kernels, for checking only");
  } else if (DetectIsa() < Isa::kAvx512) {
    missing.emplace_back("AVX-512 with VNNI: the CPU runs the AVX2 kernels, about half as fast");
  }
  if (memory.cgroup_limit_bytes > 0 && memory.cgroup_limit_bytes < memory.total_bytes) {
    missing.push_back(fmt::format("memory: the container may use {} of the machine's {}",
                                  Human(memory.cgroup_limit_bytes), Human(memory.total_bytes)));
  }
  if (!cuda.built_in) {
    missing.emplace_back(
        "the CUDA backend, for --device cuda: this nibble was built without it (tools/build "
        "cuda-release, needs nvcc 13)");
  }
  if (!cuda.problem.empty()) {
    missing.push_back("a card, for --device cuda: " + cuda.problem);
  }
  for (const CudaCard& card : cuda.cards) {
    if (card.compute_capability < kLeastComputeCapability) {
      missing.push_back(fmt::format(
          "a newer card than the {}, for --device cuda: it has compute capability {}.{} and nibble "
          "needs {}.{}",
          card.name, card.compute_capability / 10, card.compute_capability % 10,
          kLeastComputeCapability / 10, kLeastComputeCapability % 10));
    }
  }
  for (const CudaLibrary& library : cuda.libraries) {
    const bool matters =
        library.name.find("cublas") != std::string::npos ||
                library.name.find("cusolver") != std::string::npos
            ? !cuda.cards.empty()
            : library.name.find("nccl") != std::string::npos && cuda.cards.size() > 1;
    if (library.path.empty() && matters) {
      missing.push_back(fmt::format("{}, for {}", library.name, library.used_for));
    }
  }
  return missing;
}

class DoctorCommand final : public Command {
 public:
  std::string name() const override { return "doctor"; }
  std::string summary() const override {
    return "say what this machine has, and what is missing for what";
  }
  std::string description() const override {
    return "Looks at the system, the CPU, memory, the NVIDIA driver, its cards and its libraries. "
           "Changes nothing, needs no model, always\n"
           "exits with 0.\n\n"
           "  nibble doctor\n"
           "  nibble doctor --json";
  }
  void Declare(OptionSet& options) override {
    options.Add("--json", &json_, "print one JSON object");
  }

  Result<int> Run(const Environment& environment) override {
    const CudaInfo cuda = ProbeCuda();
    const MachineMemory memory = ReadMachineMemory();
    const std::vector<std::string> missing = Missing(cuda, memory);
    if (json_) {
      PrintJson(environment, cuda, memory, missing);
    } else {
      PrintText(environment, cuda, memory, missing);
    }
    return kExitOk;
  }

 private:
  static std::string Kernel() {
    utsname name{};
    return uname(&name) == 0 ? name.release : "";
  }
  static unsigned CpusetSize() { return std::thread::hardware_concurrency(); }
  static bool Exists(const std::string& folder) {
    std::error_code error;
    return std::filesystem::is_directory(folder, error);
  }
  static int Threads(const Environment& environment) {
    return environment.num_threads > 0 ? environment.num_threads : UsableCpuCount();
  }

  static void PrintText(const Environment& environment, const CudaInfo& cuda,
                        const MachineMemory& memory, const std::vector<std::string>& missing) {
    fmt::print("system     {}, Linux {}\n", SystemName(), Kernel());
    fmt::print("cpu        {}\n", DescribeCpu());
    fmt::print("kernels    {} (can run: {})\n", Name(CurrentIsa()),
               fmt::join(KernelLevels(), ", "));
    fmt::print("cores      {} logical in the cpuset, {} threads at work\n", CpusetSize(),
               Threads(environment));
    fmt::print("memory     {}, {} available", Human(memory.total_bytes),
               Human(memory.available_bytes));
    if (memory.cgroup_limit_bytes > 0) {
      fmt::print("; the cgroup allows {}, {} of it used", Human(memory.cgroup_limit_bytes),
                 Human(memory.cgroup_used_bytes));
    }
    fmt::print("\nhub cache  {}{}\n", environment.hub_cache,
               Exists(environment.hub_cache) ? "" : " (not there)");
    fmt::print("driver     {}\n",
               cuda.cuda_version == 0
                   ? "none"
                   : fmt::format("{}CUDA {}",
                                 cuda.driver_version.empty() ? "" : cuda.driver_version + ", ",
                                 Version(cuda.cuda_version)));
    for (std::size_t i = 0; i < cuda.cards.size(); ++i) {
      const CudaCard& card = cuda.cards[i];
      fmt::print("card {:<5} {}: compute capability {}.{}, {}{}, {} SMs at up to {} MHz, L2 {}\n",
                 i, card.name, card.compute_capability / 10, card.compute_capability % 10,
                 Human(card.total_bytes),
                 card.free_bytes > 0 ? fmt::format(" ({} free)", Human(card.free_bytes)) : "",
                 card.num_sms, card.clock_mhz, Human(card.l2_bytes));
    }
    for (const CudaLibrary& library : cuda.libraries) {
      fmt::print("library    {:20} {}\n", library.name,
                 library.path.empty() ? "not found" : library.path);
    }
    for (const std::string& line : missing) {
      fmt::print("missing    {}\n", line);
    }
    if (missing.empty()) {
      fmt::print("missing    nothing\n");
    }
  }

  static void PrintJson(const Environment& environment, const CudaInfo& cuda,
                        const MachineMemory& memory, const std::vector<std::string>& missing) {
    const auto texts = [](const std::vector<std::string>& values) {
      json::Array array;
      for (const std::string& value : values) {
        array.push_back(value);
      }
      return array;
    };
    json::Object cpu;
    cpu.Set("model", DescribeCpu());
    cpu.Set("kernels", Name(CurrentIsa()));
    cpu.Set("can_run", texts(KernelLevels()));
    cpu.Set("cpuset_cores", static_cast<std::int64_t>(CpusetSize()));
    cpu.Set("threads", Threads(environment));
    json::Object ram;
    ram.Set("total_bytes", memory.total_bytes);
    ram.Set("available_bytes", memory.available_bytes);
    ram.Set("cgroup_limit_bytes", memory.cgroup_limit_bytes == 0
                                      ? json::Value(nullptr)
                                      : json::Value(memory.cgroup_limit_bytes));
    ram.Set("cgroup_used_bytes", memory.cgroup_used_bytes);
    json::Array cards;
    for (const CudaCard& card : cuda.cards) {
      json::Object object;
      object.Set("name", card.name);
      object.Set("compute_capability",
                 fmt::format("{}.{}", card.compute_capability / 10, card.compute_capability % 10));
      object.Set("total_bytes", card.total_bytes);
      object.Set("free_bytes",
                 card.free_bytes == 0 ? json::Value(nullptr) : json::Value(card.free_bytes));
      object.Set("sms", card.num_sms);
      object.Set("clock_mhz", card.clock_mhz);
      object.Set("memory_clock_mhz", card.memory_clock_mhz);
      object.Set("memory_bus_bits", card.memory_bus_bits);
      object.Set("l2_bytes", card.l2_bytes);
      cards.push_back(std::move(object));
    }
    json::Array libraries;
    for (const CudaLibrary& library : cuda.libraries) {
      json::Object object;
      object.Set("name", library.name);
      object.Set("path", library.path.empty() ? json::Value(nullptr) : json::Value(library.path));
      object.Set("used_for", library.used_for);
      libraries.push_back(std::move(object));
    }
    json::Object gpu;
    gpu.Set("built_in", cuda.built_in);
    gpu.Set("driver_version", cuda.driver_version);
    gpu.Set("driver_cuda_version", Version(cuda.cuda_version));
    gpu.Set("problem", cuda.problem.empty() ? json::Value(nullptr) : json::Value(cuda.problem));
    gpu.Set("cards", std::move(cards));
    gpu.Set("libraries", std::move(libraries));
    json::Object out;
    out.Set("system", SystemName());
    out.Set("kernel", Kernel());
    out.Set("cpu", std::move(cpu));
    out.Set("memory", std::move(ram));
    out.Set("hub_cache", environment.hub_cache);
    out.Set("cuda", std::move(gpu));
    out.Set("missing", texts(missing));
    fmt::print("{}\n", json::Dump(out, {.indent = 1, .key_separator = ": "}));
  }

  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeDoctorCommand() { return std::make_unique<DoctorCommand>(); }

}  // namespace nibble::cli
