// Where kernels write: the memory of large results is kept when they are freed, and handed to later ones. The system
// fills fresh pages with zeros first, which takes longer than most kernels here.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace fastmed {

// An uninitialised tensor on the CPU, of `like`'s dtype if none is given.
torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& shape,
                                 std::optional<torch::headeronly::ScalarType> dtype = std::nullopt);

}  // namespace fastmed
