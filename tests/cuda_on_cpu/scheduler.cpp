// Runs a grid on the host: blocks one after another, each thread of a block on a stack of its own until it waits.
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "the switch between stacks is written for x86-64"
#endif

// Where the linker puts the static shared memory of all kernels.
extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
void cuda_on_cpu_switch(void** saved, void* next);
}

// Keeps what the ABI lets a callee keep, and changes stacks.
asm(R"(
.text
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kPageBytes = 4096;
constexpr int kSharedBytes = 48 * 1024;       // without asking for more
constexpr int kMostSharedBytes = 227 * 1024;  // of compute capability 9.0
constexpr unsigned char kRubbish = 0xCD;
constexpr unsigned kLanes = 32;

// ---- Stacks ----

struct Stack {
  unsigned char* bottom = nullptr;
  size_t bytes = 0;
  void* pointer = nullptr;  // of a stack that is not running
  void* fake = nullptr;     // AddressSanitizer's
};

#ifdef __SANITIZE_ADDRESS__
// The stack left behind is told to AddressSanitizer when it is switched to again.
void finish_switch(Stack& running, Stack& left) {
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(running.fake, &bottom, &left.bytes);
  left.bottom = static_cast<unsigned char*>(const_cast<void*>(bottom));
}
#endif

void switch_stacks(Stack& from, Stack& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
  cuda_on_cpu_switch(&from.pointer, to.pointer);
#ifdef __SANITIZE_ADDRESS__
  finish_switch(from, to);
#endif
}

Stack make_stack(void (*entry)()) {
  void* const memory = mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPageBytes, PROT_NONE);  // an overflow stops here
  Stack stack;
  stack.bottom = static_cast<unsigned char*>(memory) + kPageBytes;
  stack.bytes = kStackBytes;
  void** const top = reinterpret_cast<void**>(stack.bottom + kStackBytes);
  top[-2] = reinterpret_cast<void*>(entry);  // the first switch returns here, six registers above
  stack.pointer = top - 8;
  return stack;
}

// ---- One block ----

enum class State { kReady, kAtBlockBarrier, kInWarp, kExited };

struct Thread {
  State state = State::kReady;
  Place place;
  Stack* stack = nullptr;
};

struct Warp {
  unsigned arrived = 0;
  Place place;
  bool odd = false;  // a lane may still read one exchange while another lane brings to the next
  uint64_t brought[2][kLanes] = {};
};

struct Block {
  const std::function<void()>* kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> ready;
  unsigned at_barrier = 0, exited = 0, current = 0;
  Place barrier;
  std::string error;
};

std::mutex one_grid;
std::mt19937 shuffle_by;
unsigned long order_seed = 0;
std::map<const void*, int> allowed_shared;
std::unique_ptr<unsigned char[]> dynamic_memory;
std::vector<std::unique_ptr<Stack>> stacks;
std::vector<Stack*> free_stacks;
Stack main_stack;
Block* block = nullptr;

std::string described(Place place) {
  std::ostringstream text;
  text << place.file_name() << ":" << place.line() << " (" << place.function_name() << ")";
  return text.str();
}

// Seed 0 keeps the order, 1 reverses it, any other shuffles it.
template <class Item>
void put_in_order(std::vector<Item>& items) {
  if (order_seed == 1) {
    std::sort(items.begin(), items.end(), std::greater<>());
  } else if (order_seed > 1) {
    std::shuffle(items.begin(), items.end(), shuffle_by);
  } else {
    std::sort(items.begin(), items.end());
  }
}

// A stack is used again and again: each turn runs one thread to its end.
void run_threads() {
#ifdef __SANITIZE_ADDRESS__
  finish_switch(*block->threads[block->current].stack, main_stack);
#endif
  for (;;) {
    try {
      (*block->kernel)();
    } catch (const std::exception& error) {
      block->error = error.what();
    }
    Thread& thread = block->threads[block->current];
    thread.state = State::kExited;
    ++block->exited;
    switch_stacks(*thread.stack, main_stack);
  }
}

Stack* take_stack() {
  if (free_stacks.empty()) {
    stacks.push_back(std::make_unique<Stack>(make_stack(run_threads)));
    return stacks.back().get();
  }
  Stack* const stack = free_stacks.back();
  free_stacks.pop_back();
  return stack;
}

void wait_in(State state, Place place) {
  Thread& thread = block->threads[block->current];
  thread.state = state;
  thread.place = place;
  switch_stacks(*thread.stack, main_stack);
}

void make_ready(unsigned index) {
  block->threads[index].state = State::kReady;
  block->ready.push_back(index);
}

void resume(unsigned index) {
  Thread& thread = block->threads[index];
  if (thread.stack == nullptr) thread.stack = take_stack();
  block->current = index;
  threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
  switch_stacks(main_stack, *thread.stack);
  if (thread.state == State::kExited) free_stacks.push_back(thread.stack);
}

// What the threads of a block that cannot go on are waiting for.
std::string stalled() {
  std::map<std::string, unsigned> groups;
  for (const Thread& thread : block->threads) {
    const bool exited = thread.state == State::kExited;
    ++groups[exited ? "returned"
                    : (thread.state == State::kInWarp ? "wait for their warp at " : "wait for the block at ") +
                          described(thread.place)];
  }
  std::ostringstream text;
  text << "threads of one block wait for each other for ever:";
  for (const auto& [what, count] : groups) text << "\n  " << count << " " << what;
  return text.str();
}

void run_block() {
  while (block->exited < block->threads.size()) {
    if (block->ready.empty()) {
      if (block->at_barrier == 0 || block->at_barrier + block->exited < block->threads.size()) {
        throw std::runtime_error(stalled());
      }
      block->at_barrier = 0;
      for (unsigned i = 0; i < block->threads.size(); ++i) {
        if (block->threads[i].state == State::kAtBlockBarrier) make_ready(i);
      }
    }
    std::vector<unsigned> turn;
    turn.swap(block->ready);
    put_in_order(turn);
    for (const unsigned index : turn) {
      resume(index);
      if (!block->error.empty()) throw std::runtime_error(block->error);
    }
  }
}

// Not instrumented: it also crosses the gaps that AddressSanitizer leaves between variables.
__attribute__((no_sanitize("address", "undefined"), optimize("no-tree-loop-distribute-patterns")))
void fill_static_shared() {
  for (unsigned char* byte = __start_cuda_shared; byte < __stop_cuda_shared; ++byte) *byte = kRubbish;
}

cudaError_t checked(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 &grid = config.gridDim, &threads = config.blockDim;
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  const bool grid_fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 2147483647u && grid.y <= 65535 &&
                         grid.z <= 65535;
  const bool block_fits = count > 0 && count <= 1024 && threads.z <= 64;
  const auto asked = allowed_shared.find(kernel);
  const auto most = static_cast<size_t>(asked == allowed_shared.end() ? kSharedBytes : asked->second);
  if (config.dynamicSmemBytes > most) return cudaErrorInvalidValue;
  return grid_fits && block_fits ? cudaSuccess : cudaErrorInvalidConfiguration;
}

void run_blocks(const std::function<void()>& kernel, size_t shared_bytes) {
  const uint64_t count = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  std::vector<uint64_t> indices(count);
  std::iota(indices.begin(), indices.end(), uint64_t{0});
  put_in_order(indices);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  dynamic_memory.reset(new unsigned char[shared_bytes]);
  for (const uint64_t index : indices) {
    blockIdx = {static_cast<unsigned>(index % gridDim.x), static_cast<unsigned>(index / gridDim.x % gridDim.y),
                static_cast<unsigned>(index / gridDim.x / gridDim.y)};
    fill_static_shared();
    std::fill_n(dynamic_memory.get(), shared_bytes, kRubbish);
    Block running;
    running.kernel = &kernel;
    running.threads.resize(threads);
    running.warps.resize((threads + kLanes - 1) / kLanes);
    running.ready.resize(threads);
    std::iota(running.ready.begin(), running.ready.end(), 0u);
    block = &running;
    try {
      run_block();
    } catch (...) {
      free_stacks.clear();  // threads that never return keep theirs
      throw;
    }
  }
}

}  // namespace

cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  const std::lock_guard lock(one_grid);
  const cudaError_t status = checked(config, kernel);
  if (status != cudaSuccess) return status;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  run_blocks(thread, config.dynamicSmemBytes);
  return cudaSuccess;
}

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  const std::lock_guard lock(one_grid);
  if (bytes < 0 || bytes > kMostSharedBytes) return cudaErrorInvalidValue;
  allowed_shared[kernel] = bytes;
  return cudaSuccess;
}

void* dynamic_shared() { return dynamic_memory.get(); }

int lane_of_thread() { return static_cast<int>(block->current % kLanes); }

void wait_for_block(Place place) {
  if (block->at_barrier == 0) block->barrier = place;
  if (block->barrier.line() != place.line() || block->barrier.file_name() != std::string(place.file_name())) {
    throw std::runtime_error("threads of one block wait at two barriers: " + described(block->barrier) + " and " +
                             described(place));
  }
  ++block->at_barrier;
  wait_in(State::kAtBlockBarrier, place);
}

const uint64_t* exchange_in_warp(unsigned mask, uint64_t brought, Place place) {
  const unsigned first = block->current / kLanes * kLanes;
  Warp& warp = block->warps[first / kLanes];
  if (mask != 0xffffffffu || first + kLanes > block->threads.size()) {
    throw std::runtime_error("only whole warps with a full mask are emulated: " + described(place));
  }
  if (warp.arrived == 0) warp.place = place;
  if (warp.place.line() != place.line() || warp.place.file_name() != std::string(place.file_name())) {
    throw std::runtime_error("threads of one warp meet in two places: " + described(warp.place) + " and " +
                             described(place));
  }
  uint64_t* const all = warp.brought[warp.odd];
  all[block->current - first] = brought;
  if (++warp.arrived < kLanes) {
    wait_in(State::kInWarp, place);
    return all;
  }
  warp.arrived = 0;
  warp.odd = !warp.odd;
  for (unsigned index = first; index < first + kLanes; ++index) {
    if (index != block->current) make_ready(index);
  }
  return all;
}

}  // namespace cuda_on_cpu

// For tests: the order in which blocks, and the threads of a block, take their turns.
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_order(unsigned long seed) {
  const std::lock_guard lock(cuda_on_cpu::one_grid);
  cuda_on_cpu::order_seed = seed;
  cuda_on_cpu::shuffle_by.seed(seed);
}
