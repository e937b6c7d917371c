// Kernels of known behaviour, right and wrong, by which the emulation itself is tested.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cuda/launch.cuh"

namespace fastmed {
namespace {

constexpr unsigned kFull = 0xffffffffu;
constexpr int kThreads = 64;
constexpr int kBlocks = 3;

using Probe = void (*)(int32_t*);

__device__ int32_t index() { return static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x); }

// ---- Right: out[i] has one value whatever the order ----

__global__ void warp_sum(int32_t* out) {
  int32_t sum = index();
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(kFull, sum, delta);
  out[index()] = __shfl_sync(kFull, sum, 0);
}

__global__ void warp_exchange(int32_t* out) {
  const unsigned odd = __ballot_sync(kFull, threadIdx.x & 1);
  const int32_t neighbour = __shfl_xor_sync(kFull, index(), 1);
  __syncwarp();
  out[index()] = neighbour + static_cast<int32_t>(__popc(odd) + __ffs(odd) + __clz(odd));
}

__global__ void block_reverse(int32_t* out) {
  FASTMED_DYNAMIC_SHARED(int32_t, values);
  for (int round = 0; round < 3; ++round) {
    values[threadIdx.x] = index() + round;
    __syncthreads();
    out[index()] = values[kThreads - 1 - threadIdx.x];
    __syncthreads();
  }
}

__global__ void exits_early(int32_t* out) {
  out[index()] = 1;
  if (threadIdx.x >= 32) return;
  __syncthreads();
  atomicAdd(out + index(), 1);
}

// ---- Wrong ----

__global__ void divergent_barrier(int32_t* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[index()] = 1;
    __syncthreads();
  }
}

__global__ void absent_lane(int32_t* out) {
  if (threadIdx.x == 5) return;
  out[index()] = __shfl_down_sync(kFull, index(), 1);
}

__global__ void barrier_against_warp(int32_t* out) {
  if (threadIdx.x < 32) __syncthreads();
  else if (threadIdx.x < 48) __syncwarp();
  out[index()] = 1;
}

__global__ void race(int32_t* out) {
  __shared__ int32_t values[kThreads];
  values[threadIdx.x] = index();
  out[index()] = values[kThreads - 1 - threadIdx.x];
}

__global__ void unwritten_shared(int32_t* out) {
  __shared__ int32_t value;
  out[index()] = value;
}

__global__ void beyond_static_shared(int32_t* out) {
  __shared__ int32_t values[kThreads];
  int32_t* const ahead = values + (out[0] == 0);
  ahead[threadIdx.x] = 1;
  __syncthreads();
  out[index()] = values[0];
}

__global__ void beyond_dynamic_shared(int32_t* out) {
  FASTMED_DYNAMIC_SHARED(int32_t, values);
  values[threadIdx.x + (out[0] == 0)] = 1;
}

__global__ void beyond_local(int32_t* out) {
  int32_t values[4] = {0, 1, 2, 3};
  const int32_t* const ahead = values + (out[0] == 0);
  __syncthreads();
  out[index()] = ahead[threadIdx.x % 4];
}

__global__ void beyond_tensor(int32_t* out) { out[index() + 1] = 1; }

__global__ void misaligned(int32_t* out) { *reinterpret_cast<uint4*>(out + 1) = uint4{1, 2, 3, 4}; }

__global__ void overflow(int32_t* out) { out[index()] = out[index()] + 0x7fffffff + index(); }

constexpr std::pair<const char*, Probe> kProbes[] = {
    {"warp_sum", warp_sum},
    {"warp_exchange", warp_exchange},
    {"block_reverse", block_reverse},
    {"exits_early", exits_early},
    {"divergent_barrier", divergent_barrier},
    {"absent_lane", absent_lane},
    {"barrier_against_warp", barrier_against_warp},
    {"race", race},
    {"unwritten_shared", unwritten_shared},
    {"beyond_static_shared", beyond_static_shared},
    {"beyond_dynamic_shared", beyond_dynamic_shared},
    {"beyond_local", beyond_local},
    {"beyond_tensor", beyond_tensor},
    {"misaligned", misaligned},
    {"overflow", overflow},
};

// Starts a probe with so many bytes of dynamic shared memory; out has one value per thread.
Tensor probe(Tensor like, std::string name, int64_t shared_bytes) {
  Tensor out = torch::stable::new_zeros(like, {kBlocks * kThreads}, ScalarType::Int);
  for (const auto& [known, kernel] : kProbes) {
    if (name != known) continue;
    launch(kernel, kBlocks, kThreads, static_cast<size_t>(shared_bytes), current_stream(like),
           static_cast<int32_t*>(out.mutable_data_ptr()));
    return out;
  }
  STD_TORCH_CHECK(false, "no probe of the name ", name);
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY(fastmed, m) { m.def("probe(Tensor like, str name, int shared_bytes) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) { m.impl("probe", TORCH_BOX(&fastmed::probe)); }
