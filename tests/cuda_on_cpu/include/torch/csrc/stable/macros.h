// torch's header; a failed call is told without torch's CUDA library.
#pragma once

#include_next <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/Exception.h>

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call)                                                                            \
  do {                                                                                                  \
    const cudaError_t status = call;                                                                    \
    STD_TORCH_CHECK(status == cudaSuccess, "CUDA error ", static_cast<int>(status), " from ", #call);   \
  } while (0)
