// instruction_set: which of the kernels' versions this process runs.
#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "cpu/simd.h"

namespace fastmed {
namespace {

int64_t instruction_set_index() { return static_cast<int64_t>(instruction_set); }

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&fastmed::instruction_set_index));
}
