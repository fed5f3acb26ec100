// Runs CUDA kernels on the CPU: what a host build of the operators and the tests may call. Kernels
// see none of this, they include common/device.cuh.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace hostcuda {

// Thrown out of launch() for every fault; the text names kernel, file:line, block and thread.
struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Which runnable thread goes next. Thread order is undefined on a GPU, so results must not depend
// on it.
enum class Order {
  depth,    // ascending; the threads that were released last go first
  reverse,  // the same, descending
  random,   // any runnable thread
  prio,     // random priorities of blocks, warps and lanes: some run as far ahead as they can
};

struct Options {
  Order order = Order::depth;
  std::uint64_t seed = 1;
  double preempt = 0;         // probability of a switch at each memory access
  bool poison = true;         // shared memory starts as 0xff: NaN in every float type
  bool bounds = true;         // global accesses must fall into a registered buffer, if there is any
  bool uninitialized = true;  // shared memory, scratch and outputs: written before they are read
  bool races = false;         // conflicting accesses that no barrier orders (one worker)
  bool counters = false;      // bytes, sectors and requests per buffer
  bool execute = true;  // false: launches are recorded, kernels do not run: for the host's time
  int workers = 2;      // OS threads; a block or a cluster stays on one of them
  int delay = -1;       // this launch since the last reset runs after the one that follows it
  int sm = 90;          // device profile: 75, 80, 86, 89, 90, 100, 120
  int multiprocessors = 132;
  int stack_kib = 0;  // per thread; 0 is 64, or 256 under a sanitizer
};

Options& options();

// What a kernel may do with a buffer. An output must have been written in full when its operator is
// done, scratch memory need not; neither may be read where nothing has been written. What is
// changed holds numbers already.
enum class Role { input, output, scratch, changed };

// The memory of one operator call. Buffers belong to the calling thread; once one is registered,
// kernels launched by this thread may access nothing else in global memory. Empty ones are ignored.
class BufferScope {
 public:
  BufferScope();
  ~BufferScope();
  BufferScope(const BufferScope&) = delete;
  BufferScope& operator=(const BufferScope&) = delete;
  void input(const void* p, std::size_t bytes, const char* name) {
    add(const_cast<void*>(p), bytes, name, Role::input);
  }
  // Poisoned first: filled with NaN.
  void output(void* p, std::size_t bytes, const char* name) { add(p, bytes, name, Role::output); }
  void scratch(void* p, std::size_t bytes, const char* name) { add(p, bytes, name, Role::scratch); }
  void changed(void* p, std::size_t bytes, const char* name) { add(p, bytes, name, Role::changed); }

  // The operator's stream; asking for it forbids launches on any other.
  void* stream();
  // Throws LaunchError if an output is incomplete.
  void require_written(const char* op) const;

 private:
  void add(void* p, std::size_t bytes, const char* name, Role role);
  std::size_t before_;
  const void* stream_before_;
};

// Counters, launch log and shared-memory use so far, as JSON; see control.py for the fields.
std::string report_json();
void reset_report();

}  // namespace hostcuda
