// Where kernels run: the tensor's device, torch's current stream, and grids of blocks over rows.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "checks.h"

namespace fastmed {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Every kernel starts here, and says here when it could not. A call rather than <<<>>>, so that the host compiler
// reads kernels too: tests/cuda_on_cpu runs them without a GPU.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Shared memory whose size the launch decides.
#ifndef FASTMED_DYNAMIC_SHARED
#define FASTMED_DYNAMIC_SHARED(Type, name) extern __shared__ Type name[]
#endif

constexpr int64_t kMaxGridX = 2147483647;
constexpr int64_t kMaxGridY = 65535;

inline int64_t ceil_div(int64_t count, int64_t divisor) { return (count + divisor - 1) / divisor; }

// Blocks of kRowThreads x kRowsPerBlock threads; every thread takes several voxels of one output row.
constexpr int kRowThreads = 64;
constexpr int kRowsPerBlock = 4;
constexpr int kVoxelsPerThread = 4;

inline dim3 row_block() { return dim3(kRowThreads, kRowsPerBlock); }

inline dim3 row_grid(int64_t rows, int64_t width) {
  const int64_t blocks = ceil_div(rows, kRowsPerBlock);
  STD_TORCH_CHECK(blocks <= kMaxGridX, "size: too many output rows for one launch: ", rows);
  return dim3(static_cast<unsigned>(blocks),
              static_cast<unsigned>(std::min(kMaxGridY, ceil_div(width, kRowThreads * kVoxelsPerThread))));
}

// The output row of a thread, and the voxels of it that are the thread's own.
struct RowPlace {
  int64_t row;
  int32_t first, step;
};

__device__ __forceinline__ RowPlace row_place() {
  return {static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.y,
          static_cast<int32_t>(blockIdx.y * kRowThreads + threadIdx.x),
          static_cast<int32_t>(gridDim.y * kRowThreads)};
}

// Device memory of float64 parameters, one row per output or one for all.
struct DeviceParameters {
  const double* data;
  int64_t stride;

  __device__ __forceinline__ const double* row(int64_t output) const {
    return data ? data + output * stride : nullptr;
  }
};

inline DeviceParameters device_parameters(const std::optional<Tensor>& tensor) {
  if (!tensor) return {nullptr, 0};
  return {static_cast<const double*>(tensor->const_data_ptr()), tensor->size(0) == 1 ? 0 : tensor->stride(0)};
}

}  // namespace fastmed
