// The part of CUDA that csrc/cuda uses, for g++: kernels run on the host, a thread of a block after the other.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// In a section of their own, so that every block can find them filled with rubbish.
#define __shared__ static __attribute__((section("cuda_shared")))
#define FASTMED_DYNAMIC_SHARED(Type, name) Type* const name = static_cast<Type*>(cuda_on_cpu::dynamic_shared())

// ---- Types and limits of the runtime ----

#define CUDA_ON_CPU_VECTOR(Name, Scalar)                                             \
  struct alignas(2 * sizeof(Scalar)) Name##2 {                                       \
    Scalar x, y;                                                                     \
  };                                                                                 \
  struct Name##3 {                                                                   \
    Scalar x, y, z;                                                                  \
  };                                                                                 \
  struct alignas(16) Name##4 {                                                       \
    Scalar x, y, z, w;                                                               \
  };                                                                                 \
  inline Name##2 make_##Name##2(Scalar x, Scalar y) { return {x, y}; }               \
  inline Name##3 make_##Name##3(Scalar x, Scalar y, Scalar z) { return {x, y, z}; }  \
  inline Name##4 make_##Name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTOR(int, int)
CUDA_ON_CPU_VECTOR(uint, unsigned)
CUDA_ON_CPU_VECTOR(float, float)
CUDA_ON_CPU_VECTOR(double, double)
CUDA_ON_CPU_VECTOR(longlong, long long)
CUDA_ON_CPU_VECTOR(ulonglong, unsigned long long)
#undef CUDA_ON_CPU_VECTOR

struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(8) short4 {
  short x, y, z, w;
};
struct alignas(8) ushort4 {
  unsigned short x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3, cudaMemcpyDefault = 4 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- The scheduler (scheduler.cpp) ----

namespace cuda_on_cpu {

using Place = std::source_location;

cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread);
cudaError_t allow_dynamic_shared(const void* kernel, int bytes);
void* dynamic_shared();
// Waits for the block's other threads, which must come to the same place.
void wait_for_block(Place place);
// Waits for the warp's other threads; gives what each of the 32 brought.
const uint64_t* exchange_in_warp(unsigned mask, uint64_t brought, Place place);
int lane_of_thread();

template <class Value>
Value shuffled(unsigned mask, Value value, int source, Place place) {
  static_assert(sizeof(Value) <= sizeof(uint64_t) && std::is_trivially_copyable_v<Value>);
  uint64_t brought = 0;
  std::memcpy(&brought, &value, sizeof value);
  const uint64_t* const all = exchange_in_warp(mask, brought, place);
  std::memcpy(&value, all + source, sizeof value);
  return value;
}

template <class Value>
Value exchange(Value* address, Value value) {
  return std::exchange(*address, value);
}

}  // namespace cuda_on_cpu

// ---- Host calls ----

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> converted(std::forward<Arguments>(arguments)...);
  return cuda_on_cpu::run_grid(*config, reinterpret_cast<const void*>(kernel),
                               [&] { std::apply(kernel, converted); });
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  return cuda_on_cpu::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // a failed launch has already said so

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 3;  // few multiprocessors, so that small tests reach what a full device does
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

// ---- Device functions ----

inline void __syncthreads(cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  cuda_on_cpu::wait_for_block(place);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  cuda_on_cpu::exchange_in_warp(mask, 0, place);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = 32,
                  cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  const int first = cuda_on_cpu::lane_of_thread() & ~(width - 1);
  return cuda_on_cpu::shuffled(mask, value, first + (source & (width - 1)), place);
}

template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32,
                       cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  const int lane = cuda_on_cpu::lane_of_thread(), source = lane + static_cast<int>(delta);
  return cuda_on_cpu::shuffled(mask, value, source / width == lane / width ? source : lane, place);
}

template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32,
                     cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  const int lane = cuda_on_cpu::lane_of_thread(), source = lane - static_cast<int>(delta);
  return cuda_on_cpu::shuffled(mask, value, source >= (lane & ~(width - 1)) ? source : lane, place);
}

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes, int width = 32,
                      cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  const int lane = cuda_on_cpu::lane_of_thread(), source = lane ^ lanes;
  return cuda_on_cpu::shuffled(mask, value, source / width <= lane / width ? source : lane, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  const uint64_t* const all = cuda_on_cpu::exchange_in_warp(mask, predicate != 0, place);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}

inline int __any_sync(unsigned mask, int predicate, cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  return __ballot_sync(mask, predicate, place) != 0;
}

inline int __all_sync(unsigned mask, int predicate, cuda_on_cpu::Place place = cuda_on_cpu::Place::current()) {
  return __ballot_sync(mask, predicate, place) == 0xffffffffu;
}

// A thread runs alone between barriers, so plain arithmetic is atomic.
template <class Value>
Value atomicAdd(Value* address, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, static_cast<Value>(*address + value));
}
template <class Value>
Value atomicMin(Value* address, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, value < *address ? value : *address);
}
template <class Value>
Value atomicMax(Value* address, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, value > *address ? value : *address);
}
template <class Value>
Value atomicOr(Value* address, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, *address | value);
}
template <class Value>
Value atomicAnd(Value* address, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, *address & value);
}
template <class Value>
Value atomicExch(Value* address, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, value);
}
template <class Value>
Value atomicCAS(Value* address, std::type_identity_t<Value> expected, std::type_identity_t<Value> value) {
  return cuda_on_cpu::exchange(address, *address == expected ? value : *address);
}

template <class Value>
Value __ldg(const Value* address) {
  return *address;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return std::countl_zero(static_cast<unsigned long long>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }

// CUDA's own min and max drop a NaN.
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using Value = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Value>) return std::fmin(static_cast<Value>(a), static_cast<Value>(b));
  return static_cast<Value>(b) < static_cast<Value>(a) ? static_cast<Value>(b) : static_cast<Value>(a);
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using Value = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Value>) return std::fmax(static_cast<Value>(a), static_cast<Value>(b));
  return static_cast<Value>(a) < static_cast<Value>(b) ? static_cast<Value>(b) : static_cast<Value>(a);
}
