// Labels of any integer dtype, chosen at run time.
#pragma once

#include <cstdint>

#include "checks.h"

namespace fastmed {

__device__ __forceinline__ int64_t load_label(const void* labels, ScalarType dtype, int64_t index) {
  switch (dtype) {
    case ScalarType::Char: return static_cast<const int8_t*>(labels)[index];
    case ScalarType::Short: return static_cast<const int16_t*>(labels)[index];
    case ScalarType::UInt16: return static_cast<const uint16_t*>(labels)[index];
    case ScalarType::Int: return static_cast<const int32_t*>(labels)[index];
    case ScalarType::Long: return static_cast<const int64_t*>(labels)[index];
    default: return static_cast<const uint8_t*>(labels)[index];  // bool and uint8
  }
}

}  // namespace fastmed
