// parallel: work(0) .. work(count - 1) shared by some threads, each item taken once.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace fastmed::host {

// `make_work()` gives each thread its own callable, which may keep a buffer. The first exception is thrown again.
template <class MakeWork>
void parallel(size_t count, size_t threads, MakeWork make_work) {
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  std::exception_ptr first;
  const auto run = [&] {
    try {
      auto work = make_work();
      for (size_t item; !failed && (item = next++) < count;) work(item);
    } catch (...) {
      if (!failed.exchange(true)) first = std::current_exception();
    }
  };
  std::vector<std::jthread> others;
  for (size_t k = 1; k < threads && k < count; ++k) {
    try {
      others.emplace_back(run);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do the work
      break;
    }
  }
  run();
  others.clear();
  if (first) std::rethrow_exception(first);
}

}  // namespace fastmed::host
