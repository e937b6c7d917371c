// Compiles a kernel for several instruction sets and picks one at run time; wheels target plain x86-64.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "math/host_device.h"

namespace fastmed {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

#if defined(__x86_64__) && defined(__GNUC__)

#define FASTMED_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2")))
#define FASTMED_AVX512 \
  __attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")))

inline InstructionSet detect_instruction_set() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("f16c")) {
    return InstructionSet::kBaseline;
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? InstructionSet::kAvx512 : InstructionSet::kAvx2;
}

// The best this CPU has, or a lesser one that FASTMED_CPU names; fastmed/ops/_load.py refuses other names.
inline InstructionSet choose_instruction_set() {
  const InstructionSet best = detect_instruction_set();
  const char* const wanted = std::getenv("FASTMED_CPU");
  if (!wanted) return best;
  if (std::strcmp(wanted, "baseline") == 0) return InstructionSet::kBaseline;
  if (std::strcmp(wanted, "avx2") == 0 && best == InstructionSet::kAvx512) return InstructionSet::kAvx2;
  return best;
}

inline const InstructionSet instruction_set = choose_instruction_set();

template <class Kernel, class... Args>
FASTMED_AVX2 void run_avx2(Args... args) {
  Kernel::run(args...);
}

template <class Kernel, class... Args>
FASTMED_AVX512 void run_avx512(Args... args) {
  Kernel::run(args...);
}

template <class Kernel, class... Args>
void run_baseline(Args... args) {
  Kernel::run(args...);
}

// Kernel::run must be FASTMED_HD, so that it is compiled anew inside each of the three.
template <class Kernel, class... Args>
inline void run(Args... args) {
  switch (instruction_set) {
    case InstructionSet::kAvx512:
      return run_avx512<Kernel>(args...);
    case InstructionSet::kAvx2:
      return run_avx2<Kernel>(args...);
    case InstructionSet::kBaseline:
      return run_baseline<Kernel>(args...);
  }
}

// As run, of two kernels that differ in their multiply-adds: Fused rounds once, where the machine does so at no cost.
template <class Fused, class Plain, class... Args>
inline void run_fused(Args... args) {
  switch (instruction_set) {
    case InstructionSet::kAvx512:
      return run_avx512<Fused>(args...);
    case InstructionSet::kAvx2:
      return run_avx2<Fused>(args...);
    case InstructionSet::kBaseline:
      return run_baseline<Plain>(args...);
  }
}

#else

inline const InstructionSet instruction_set = InstructionSet::kBaseline;

template <class Kernel, class... Args>
inline void run(Args... args) {
  Kernel::run(args...);
}

template <class Fused, class Plain, class... Args>
inline void run_fused(Args... args) {
  Plain::run(args...);
}

#endif

template <bool kFused, class Real>
FASTMED_HD Real multiply_add(Real factor, Real value, Real sum) {
  if constexpr (kFused) {
    return std::fma(factor, value, sum);
  } else {
    return factor * value + sum;
  }
}

}  // namespace fastmed
