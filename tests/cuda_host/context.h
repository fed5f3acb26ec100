// Switching between stacks of one OS thread, and what the sanitizers must be told about it.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define HOSTCUDA_ASAN 1
#else
#define HOSTCUDA_ASAN 0
#endif
// Kernels built with -fsanitize=thread; the runtime itself is built without, and with this macro.
#if !defined(HOSTCUDA_TSAN)
#define HOSTCUDA_TSAN 0
#endif

// The portable way is ten times slower: it asks the system for the signal mask at every switch.
#if !defined(HOSTCUDA_UCONTEXT)
#if defined(__x86_64__)
#define HOSTCUDA_UCONTEXT 0
#else
#define HOSTCUDA_UCONTEXT 1
#endif
#endif
#if HOSTCUDA_UCONTEXT
#include <ucontext.h>
#endif

namespace hostcuda {

// A suspended stack. The OS thread's own stack is one too.
struct Context {
#if HOSTCUDA_UCONTEXT
  ucontext_t state;
#else
  void* sp = nullptr;
#endif
  const void* stack = nullptr;  // lowest address
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan_fiber = nullptr;
};

// Describes the running stack, so that others can switch to it.
void adopt_current(Context& c);

// Prepares `entry` to run on the stack at the first switch. It must never return.
void prepare(Context& c, void* stack, std::size_t stack_bytes, void (*entry)());

// Suspends `from`, which is running, and resumes `to`. With `leaving`, `from` is never resumed.
void switch_context(Context& from, Context& to, bool leaving);

// First thing on a new stack.
void started_on(Context& c, Context& came_from);

// The stack will not be used by this context again, finished or not. Whoever acquires the tag sees
// what ran on it.
void retire(Context& c, void* tag);

// Orderings of the simulated program, for ThreadSanitizer: what happened before release(tag) in one
// CUDA thread is visible after acquire(tag) in another.
#if HOSTCUDA_TSAN
void release(void* tag);
void acquire(void* tag);
#else
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// ThreadSanitizer ignores what the runtime does for a kernel, as far as it would see it: calls of
// the C library. Suspended stacks must not be in such a stretch, because they may never run on.
#if HOSTCUDA_TSAN
void begin_unobserved();
void end_unobserved();
#else
inline void begin_unobserved() {}
inline void end_unobserved() {}
#endif

class Unobserved {
 public:
  Unobserved() { begin_unobserved(); }
  ~Unobserved() { end_unobserved(); }
  Unobserved(const Unobserved&) = delete;
  Unobserved& operator=(const Unobserved&) = delete;
};

// Zeroed pages from the system; ThreadSanitizer forgets what it knew about the addresses.
void* map_pages(std::size_t bytes);
void unmap_pages(void* p, std::size_t bytes);

}  // namespace hostcuda
