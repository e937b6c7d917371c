// Turns a run-time dtype into a template argument.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace fastmed {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// Calls body<T>(); body is a lambda with a template argument.
template <class Body>
auto for_float_dtype(ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Half: return body.template operator()<Half>();
    case ScalarType::BFloat16: return body.template operator()<BFloat16>();
    case ScalarType::Float: return body.template operator()<float>();
    case ScalarType::Double: return body.template operator()<double>();
    default: STD_TORCH_CHECK(false, name, ": expected float16, bfloat16, float32 or float64");
  }
}

template <class Body>
auto for_voxel_dtype(ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Byte: return body.template operator()<uint8_t>();
    case ScalarType::Short: return body.template operator()<int16_t>();
    case ScalarType::UInt16: return body.template operator()<uint16_t>();
    case ScalarType::Int: return body.template operator()<int32_t>();
    default: return for_float_dtype(dtype, name, body);
  }
}

template <class Body>
auto for_label_dtype(ScalarType dtype, const char* name, const Body& body) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte: return body.template operator()<uint8_t>();
    case ScalarType::Char: return body.template operator()<int8_t>();
    case ScalarType::Short: return body.template operator()<int16_t>();
    case ScalarType::UInt16: return body.template operator()<uint16_t>();
    case ScalarType::Int: return body.template operator()<int32_t>();
    case ScalarType::Long: return body.template operator()<int64_t>();
    default:
      STD_TORCH_CHECK(false, name, ": expected bool, uint8, int8, int16, uint16, int32 or int64");
  }
}

// The arithmetic of window_resample: float32 holds every 8 and 16-bit voxel with room for fractions.
inline bool needs_double(ScalarType volume, ScalarType out) {
  return volume == ScalarType::Double || volume == ScalarType::Int || out == ScalarType::Double;
}

}  // namespace fastmed
