// Marks functions that both the CPU and the CUDA sources compile.
#pragma once

#ifdef __CUDACC__
#define FASTMED_HD __host__ __device__ __forceinline__
#else
#define FASTMED_HD inline __attribute__((always_inline))
#endif
