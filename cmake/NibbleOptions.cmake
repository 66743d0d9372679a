# Flags of every target of ours. Sums of floats have a fixed order and fixed roundings in this program
# (docs/adr/0002-one-arithmetic.md), so the compiler may not contract a * b + c on its own.
add_library(nibble_options INTERFACE)
target_compile_options(nibble_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Werror
  -ffp-contract=off -fno-strict-aliasing -fstack-protector-strong -ftrivial-auto-var-init=zero)

option(NIBBLE_ASAN "Address and undefined-behaviour sanitizers" OFF)
option(NIBBLE_TSAN "Thread sanitizer" OFF)
if(NIBBLE_ASAN)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
if(NIBBLE_TSAN)
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
endif()
