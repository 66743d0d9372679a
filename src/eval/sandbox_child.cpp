#include "eval/sandbox_child.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <iterator>

namespace nibble {
namespace {

// Landlock as its documentation gives it: the headers of the systems we build on are older.
constexpr long kLandlockCreateRuleset = 444, kLandlockAddRule = 445, kLandlockRestrictSelf = 446;
constexpr unsigned kLandlockVersionFlag = 1;
constexpr int kRulePathBeneath = 1;
constexpr std::uint64_t kWriteFile = 1U << 1;
constexpr std::uint64_t kRemoveAndMake = 0x1ff0;  // REMOVE_DIR (bit 4) to MAKE_SYM (bit 12)
constexpr std::uint64_t kRefer = 1U << 13;        // from version 2
constexpr std::uint64_t kTruncate = 1U << 14;     // from version 3
constexpr std::uint64_t kTcp = 3;                 // bind and connect, from version 4

struct LandlockRuleset {
  std::uint64_t handled_access_fs = 0;
  std::uint64_t handled_access_net = 0;
};
struct [[gnu::packed]] LandlockPathBeneath {
  std::uint64_t allowed_access = 0;
  std::int32_t parent_fd = -1;
};

#define NIBBLE_DENY(number)                                              \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<__u32>(number), 0, 1), \
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

// No sockets, no processes (a thread is allowed), no signals to others, no look into them, and not
// io_uring, which opens sockets without the call for it. clone3 does not exist here: its flags lie
// in memory, where a filter cannot read; the C library then takes clone.
constexpr __u32 kThread = CLONE_THREAD;
constexpr sock_filter kFilter[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1),  // the x32 calls
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    NIBBLE_DENY(SYS_socket),
    NIBBLE_DENY(SYS_socketpair),
    NIBBLE_DENY(SYS_fork),
    NIBBLE_DENY(SYS_vfork),
    NIBBLE_DENY(SYS_kill),
    NIBBLE_DENY(SYS_tkill),
    NIBBLE_DENY(SYS_rt_sigqueueinfo),
    NIBBLE_DENY(SYS_rt_tgsigqueueinfo),
    NIBBLE_DENY(SYS_pidfd_open),
    NIBBLE_DENY(SYS_pidfd_send_signal),
    NIBBLE_DENY(SYS_ptrace),
    NIBBLE_DENY(SYS_process_vm_readv),
    NIBBLE_DENY(SYS_process_vm_writev),
    NIBBLE_DENY(SYS_io_uring_setup),
    NIBBLE_DENY(SYS_unshare),
    NIBBLE_DENY(SYS_setns),
    NIBBLE_DENY(SYS_mount),
    NIBBLE_DENY(SYS_bpf),
    NIBBLE_DENY(SYS_keyctl),
    NIBBLE_DENY(SYS_prlimit64),
    NIBBLE_DENY(SYS_setrlimit),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[0])),
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kThread, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};
#undef NIBBLE_DENY

bool Limit(__rlimit_resource_t resource, std::uint64_t value, std::uint64_t hard) {
  const rlimit limit{.rlim_cur = value, .rlim_max = hard};
  return setrlimit(resource, &limit) == 0;
}

bool SetLimits(const SandboxLimits& limits) {
  const auto cpu = static_cast<std::uint64_t>(limits.cpu_seconds);
  return Limit(RLIMIT_CPU, cpu, cpu + 1) &&  // SIGXCPU, then SIGKILL
         Limit(RLIMIT_AS, limits.memory_bytes, limits.memory_bytes) &&
         Limit(RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes) &&
         Limit(RLIMIT_NOFILE, 64, 64) && Limit(RLIMIT_CORE, 0, 0);
}

// Writing only below the folder. A kernel without Landlock lets it be: layers() says so.
bool RestrictWrites(const char* folder) {
  const int version = LandlockVersion();
  if (version < 1) {
    return true;
  }
  LandlockRuleset rules{.handled_access_fs = kWriteFile | kRemoveAndMake};
  rules.handled_access_fs |= version >= 2 ? kRefer : 0;
  rules.handled_access_fs |= version >= 3 ? kTruncate : 0;
  rules.handled_access_net = version >= 4 ? kTcp : 0;
  const std::size_t size = version >= 4 ? sizeof rules : sizeof rules.handled_access_fs;
  const auto ruleset = static_cast<int>(syscall(kLandlockCreateRuleset, &rules, size, 0));
  const int parent = open(folder, O_PATH | O_CLOEXEC);
  const LandlockPathBeneath rule{.allowed_access = rules.handled_access_fs, .parent_fd = parent};
  return ruleset >= 0 && parent >= 0 &&
         syscall(kLandlockAddRule, ruleset, kRulePathBeneath, &rule, 0) == 0 &&
         syscall(kLandlockRestrictSelf, ruleset, 0) == 0;
}

bool RestrictCalls() {
  const sock_fprog program{.len = std::size(kFilter), .filter = const_cast<sock_filter*>(kFilter)};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// In the child, which shares its memory with nobody and has one thread. Never returns.
[[noreturn]] void BecomePython(const SandboxChild& child) {
  constexpr int kCouldNotStart = 127;
  static constexpr const char* kEnvironment[] = {"LC_ALL=C.UTF-8", "OMP_NUM_THREADS=1", nullptr};
  const bool ready = setsid() != -1 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 &&
                     chdir(child.folder) == 0 && dup2(child.null_fd, 0) == 0 &&
                     dup2(child.null_fd, 1) == 1 && dup2(child.output_fd, 2) == 2 &&
                     syscall(SYS_close_range, 3U, ~0U, 0U) == 0 && SetLimits(child.limits) &&
                     prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && RestrictWrites(child.folder) &&
                     RestrictCalls();
  if (ready) {
    execve(child.arguments[0], const_cast<char* const*>(child.arguments),
           const_cast<char* const*>(kEnvironment));
  }
  _exit(kCouldNotStart);
}

constexpr std::uint64_t kNamespaces =
    CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS;

// A copy of this process, as fork makes one: 0 in the copy.
pid_t Clone(std::uint64_t flags, int* pidfd) {
  return static_cast<pid_t>(syscall(SYS_clone,
                                    flags | SIGCHLD | (pidfd != nullptr ? CLONE_PIDFD : 0), nullptr,
                                    pidfd, nullptr, nullptr));
}

}  // namespace

pid_t StartSandboxChild(const SandboxChild& child, int& pidfd) {
  const pid_t pid = Clone(child.namespaces ? kNamespaces : 0, &pidfd);
  if (pid == 0) {
    BecomePython(child);
  }
  return pid;
}

int LandlockVersion() {
  return static_cast<int>(syscall(kLandlockCreateRuleset, nullptr, 0, kLandlockVersionFlag));
}

bool CanMakeNamespaces() {
  const pid_t pid = Clone(kNamespaces, nullptr);
  if (pid == 0) {
    _exit(0);
  }
  int status = 0;
  return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

}  // namespace nibble
