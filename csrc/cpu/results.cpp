// new_result; and keep_result_memory, by which a process says how much of it is kept.
#include "cpu/results.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/pages.h"
#include "cpu/result_blocks.h"

#ifdef __linux__
// Of torch 2.11 and newer; the stable ABI's headers for 2.10 leave it out.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace fastmed {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSmallest = int64_t{1} << 20;  // malloc keeps what is smaller

// Never destroyed: results may be freed after the library's own end.
ResultBlocks& blocks() {
  static ResultBlocks* const all = new ResultBlocks;
  return *all;
}

#ifdef __linux__

bool can_wrap() { return torch_from_blob != nullptr; }

void free_result(void*, void* block) { blocks().give_back(static_cast<ResultBlock*>(block)); }

// The block becomes the tensor's.
Tensor wrap(ResultBlock* block, const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  for (int64_t axis = static_cast<int64_t>(shape.size()) - 1, stride = 1; axis >= 0; stride *= shape[axis--]) {
    strides[axis] = stride;
  }
  AtenTensorHandle handle = nullptr;
  // On an error torch may have freed the block or not: to lose it is better than to hand it out twice.
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(block->data, shape.size(), shape.data(), strides.data(), 0, dtype,
                                                aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(),
                                                nullptr, 0, free_result, block));
  return Tensor(handle);
}

#else

bool can_wrap() { return false; }
Tensor wrap(ResultBlock*, const std::vector<int64_t>&, int32_t) { return Tensor(); }

#endif

// 0 where it overflows: torch says then that it has no such memory.
int64_t bytes_of(const std::vector<int64_t>& shape, int32_t dtype) {
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  for (const int64_t length : shape) {
    if (__builtin_mul_overflow(bytes, length, &bytes)) return 0;
  }
  return bytes;
}

int64_t keep_result_memory(int64_t bytes) { return blocks().set_limit(bytes); }

}  // namespace

Tensor new_result(const Tensor& like, const std::vector<int64_t>& shape, std::optional<ScalarType> dtype) {
  const auto code =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype.value_or(like.scalar_type())));
  const int64_t bytes = bytes_of(shape, code);
  if (can_wrap() && bytes >= kSmallest && blocks().limit() > 0) {
    if (ResultBlock* const block = blocks().take(bytes)) return wrap(block, shape, code);
  }
  Tensor result = torch::stable::new_empty(like, shape, dtype);
  advise_huge_pages(result.const_data_ptr(), bytes);
  return result;
}

}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CompositeExplicitAutograd, m) {
  m.impl("keep_result_memory", TORCH_BOX(&fastmed::keep_result_memory));
}
