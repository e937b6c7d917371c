// torch's header; what it registers for CUDA becomes the CPU implementation of a library of its own.
#pragma once

#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name##_emulated, m)

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) _STABLE_TORCH_LIBRARY_IMPL(name##_emulated, CPU, m, C10_UID)
