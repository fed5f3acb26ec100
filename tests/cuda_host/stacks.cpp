#include "cuda_host/stacks.h"

#include <sys/mman.h>

#include <map>
#include <mutex>

#include "cuda_host/context.h"

namespace hostcuda {
namespace {

constexpr std::size_t kBatch = 64;

struct Pool {
  std::mutex mutex;
  std::map<std::size_t, std::vector<char*>> free;  // by size
};

Pool& pool() {
  static Pool* p = new Pool;  // never destroyed: worker threads may outlive static objects
  return *p;
}

}  // namespace

void take_stacks(std::vector<char*>& to, std::size_t bytes) {
  {
    const std::lock_guard lock(pool().mutex);
    auto& free = pool().free[bytes];
    for (std::size_t i = 0; i < kBatch && !free.empty(); ++i) {
      to.push_back(free.back());
      free.pop_back();
    }
  }
  if (!to.empty()) return;
  char* slab = static_cast<char*>(map_pages(kBatch * bytes));
  for (std::size_t i = 0; i < kBatch; ++i) to.push_back(slab + i * bytes);
}

void give_back_stacks(std::vector<char*>& from, std::size_t bytes) {
  const std::lock_guard lock(pool().mutex);
  auto& free = pool().free[bytes];
  free.insert(free.end(), from.begin(), from.end());
  from.clear();
}

void recycle_stack([[maybe_unused]] char* stack, [[maybe_unused]] std::size_t bytes) {
#if HOSTCUDA_TSAN
  // A new mapping: otherwise two unordered threads seem to race on the stack they share in turn.
  mmap(stack, bytes, PROT_READ | PROT_WRITE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
#endif
}

}  // namespace hostcuda
