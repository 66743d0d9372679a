#pragma once

#include <sys/types.h>

#include "eval/python_sandbox.h"

namespace nibble {

/// All that the child process needs, made before it exists: between its birth and exec it may not
/// allocate, since other threads of the parent may have held the allocator's lock.
struct SandboxChild {
  const char* folder = nullptr;
  const char* const* arguments = nullptr;  // of python3, ends with null
  int null_fd = -1;                        // /dev/null
  int output_fd = -1;                      // becomes standard error
  SandboxLimits limits;
  bool namespaces = false;
};

/// Starts it; the child's id, or -1. pidfd: readable when it has ended.
pid_t StartSandboxChild(const SandboxChild& child, int& pidfd);

/// The version of the kernel's Landlock, 0 without.
int LandlockVersion();
/// Can this process make namespaces of its own?
bool CanMakeNamespaces();

}  // namespace nibble
