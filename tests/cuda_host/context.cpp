#include "cuda_host/context.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if HOSTCUDA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if HOSTCUDA_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* tag);
void __tsan_release(void* tag);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#if !HOSTCUDA_UCONTEXT
// Saves the callee-saved registers on the running stack and continues on the other one. Rounding
// modes are left alone: kernels do not change them.
asm(R"(
.text
.globl hostcuda_switch_stack
.hidden hostcuda_switch_stack
.type hostcuda_switch_stack,@function
hostcuda_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hostcuda_switch_stack,.-hostcuda_switch_stack
)");
extern "C" void hostcuda_switch_stack(void** save, void* to);
#endif

namespace hostcuda {

[[maybe_unused]] constexpr unsigned kNoOrdering = 1;

void adopt_current(Context& c) {
#if HOSTCUDA_TSAN
  c.tsan_fiber = __tsan_get_current_fiber();
#endif
  (void)c;
}

void prepare(Context& c, void* stack, std::size_t stack_bytes, void (*entry)()) {
  c.stack = stack;
  c.stack_bytes = stack_bytes;
  c.fake_stack = nullptr;
#if HOSTCUDA_ASAN
  __asan_unpoison_memory_region(stack, stack_bytes);
#endif
#if !HOSTCUDA_UCONTEXT
  const auto top = reinterpret_cast<std::uintptr_t>(stack) + stack_bytes;
  void** sp = reinterpret_cast<void**>(top & ~std::uintptr_t{15});
  *--sp = nullptr;  // return address of entry(), keeps its frame aligned as after a call
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  c.sp = sp;
#else
  getcontext(&c.state);
  c.state.uc_stack.ss_sp = stack;
  c.state.uc_stack.ss_size = stack_bytes;
  c.state.uc_link = nullptr;
  makecontext(&c.state, entry, 0);
#endif
#if HOSTCUDA_TSAN
  c.tsan_fiber = __tsan_create_fiber(0);
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool leaving) {
#if HOSTCUDA_ASAN
  __sanitizer_start_switch_fiber(leaving ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if HOSTCUDA_TSAN
  __tsan_switch_to_fiber(to.tsan_fiber, kNoOrdering);
#endif
#if !HOSTCUDA_UCONTEXT
  hostcuda_switch_stack(&from.sp, to.sp);
#else
  swapcontext(&from.state, &to.state);
#endif
#if HOSTCUDA_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void started_on([[maybe_unused]] Context& c, [[maybe_unused]] Context& came_from) {
#if HOSTCUDA_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &came_from.stack, &came_from.stack_bytes);
#endif
}

void retire([[maybe_unused]] Context& c, [[maybe_unused]] void* tag) {
#if HOSTCUDA_TSAN
  void* running = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(c.tsan_fiber, kNoOrdering);
  __tsan_release(tag);
  __tsan_switch_to_fiber(running, kNoOrdering);
  __tsan_destroy_fiber(c.tsan_fiber);
  c.tsan_fiber = nullptr;
#endif
}

#if HOSTCUDA_TSAN
void release(void* tag) { __tsan_release(tag); }

void acquire(void* tag) { __tsan_acquire(tag); }

void begin_unobserved() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}

void end_unobserved() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#endif

// ThreadSanitizer forgets whole pages of its notes only.
static std::size_t whole_pages(std::size_t bytes) {
  constexpr std::size_t kPages = 16384;
  return (bytes + kPages - 1) / kPages * kPages;
}

void* map_pages(std::size_t bytes) {
  // The system call, not mmap(): ThreadSanitizer would note a write of every page, and it remembers
  // only four accesses to each eight bytes.
  const long p = syscall(SYS_mmap, nullptr, whole_pages(bytes), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == -1) throw std::bad_alloc();
  return reinterpret_cast<void*>(p);
}

void unmap_pages(void* p, std::size_t bytes) { munmap(p, whole_pages(bytes)); }

}  // namespace hostcuda
