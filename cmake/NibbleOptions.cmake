# Flags of every target of ours. Sums of floats have a fixed order and fixed roundings in this program
# (docs/adr/0002-one-arithmetic.md), so the compiler may not contract a * b + c on its own.
add_library(nibble_options INTERFACE)
set(NIBBLE_CXX_OPTIONS
  -Wall -Wextra -Wshadow -Wconversion
  # Warnings are errors with the compiler that CI has; a newer one on a user's machine invents new ones.
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Werror>
  -Wno-missing-field-initializers  # every field has a default: {.rows = 3} is complete
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>  # GCC 12 reports it inside std::variant, falsely
  -ffp-contract=off -fno-strict-aliasing -fstack-protector-strong
  # GCC 12 clears values, not just padding, of temporaries that hold an array of structs: it once cleared pointers.
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_GREATER_EQUAL:$<CXX_COMPILER_VERSION>,13>>:-ftrivial-auto-var-init=zero>)
target_compile_options(nibble_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${NIBBLE_CXX_OPTIONS}>")

if(NIBBLE_CUDA)
  # --fmad=false: as above, a product and a sum are fused only where it is written (docs/adr/0007).
  # -DNDEBUG: an assert in a kernel would serialize its wgmma instructions.
  target_compile_options(nibble_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:-O3;-DNDEBUG;--fmad=false;--expt-relaxed-constexpr;-Xcompiler=-Wall>")
endif()

option(NIBBLE_RACECHECK "Barriers of CUDA kernels as racecheck follows them; slower (tools/check_cuda)" OFF)
if(NIBBLE_RACECHECK)
  # In normal builds lane 0 arrives at a barrier for its warp, after __syncwarp. racecheck credits lane 0 alone and
  # would report the other 31 against whoever uses the memory next (kernels/cuda/ptx.cuh, kWarpArrivals).
  add_compile_definitions(NIBBLE_RACECHECK)
endif()

option(NIBBLE_ASAN "Address and undefined-behaviour sanitizers" OFF)
option(NIBBLE_TSAN "Thread sanitizer" OFF)
if(NIBBLE_ASAN)
  # -Wno-uninitialized: with the sanitizer GCC 12 takes an empty struct of fmt for one, falsely.
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
                      -Wno-uninitialized)
  add_link_options(-fsanitize=address,undefined)
endif()
if(NIBBLE_TSAN)
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
endif()

# The time limits of tests count for plain builds; with a sanitizer, and on a busy machine, they are this many times longer.
set(NIBBLE_TIMEOUT_FACTOR 1)
if(NIBBLE_ASAN OR NIBBLE_TSAN)
  set(NIBBLE_TIMEOUT_FACTOR 4)
endif()
