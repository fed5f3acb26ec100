// The simulated machine: threads, warps, blocks and clusters, and the worker that runs them.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_host/context.h"
#include "cuda_host/counters.h"
#include "cuda_host/device_host.h"
#include "cuda_host/hostcuda.h"
#include "cuda_host/races.h"

// The runtime has members of its own by these names.
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace hostcuda {

enum class State : std::uint8_t { ready, running, in_warp, in_block, in_cluster, in_grid, done };

struct Warp;
struct Block;
struct Cluster;

// One CUDA thread.
struct Fiber : ThreadIndices {
  Context context;
  State state = State::ready;
  bool started = false;
  int linear = 0;  // in its block
  int lane = 0;
  Warp* warp = nullptr;
  Block* owner = nullptr;
  std::uint64_t priority = 0;
  Site waits_at;
  WarpRequest request{};
  Passed passed;
  LaneTimes lanes;
  // For the race check: the last barrier before the last fence; what atomics have seen since that
  // fence; and what is acquired.
  std::uint32_t fenced = 0;
  Releases seen, acquired;
};

struct Warp {
  unsigned lanes = 0, waiting = 0, exited = 0;
  RequestTable requests;
  // ThreadSanitizer: what each lane published at its last two __syncwarp calls.
  unsigned parity = 0;
  char tags[32][2];
};

// Threads that left count as arrived, as in PTX.
struct Barrier {
  int live = 0, arrived = 0;
  Site first;
  bool relaxed = false;  // orders no memory
  unsigned phase = 0;
  std::size_t first_block = 0, blocks = 1;  // whose threads meet here
  char tags[2];  // two, or a fast thread's next arrival would leak to a slow one
};

struct Block {
  std::uint32_t index = 0;  // in the grid
  unsigned rank = 0;
  uint3 position{};
  Cluster* cluster = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  unsigned char* shared = nullptr;
  std::vector<std::uint8_t> written;  // per kRaceUnit of shared memory
  std::vector<RaceCell> cells;        // the same, with races on
  // The last access by another block, and the cluster barriers completed before it.
  bool visited = false;
  unsigned visit_phase = 0;
  Site visit_site;
  Releases acquired;  // by threads that have passed a barrier since
};

struct Cluster {
  Barrier barrier;
};

struct Buffer {
  std::uintptr_t begin, end;
  std::string name;
  Role role;
  std::shared_ptr<std::uint8_t[]> written{};  // per kRaceUnit; outlives single launches
  bool writable() const { return role != Role::input; }
};

std::vector<Buffer>& buffers_of_thread();

// One launch; shared by its workers.
struct Launch {
  const char* name;
  const chattn::LaunchConfig& config;
  void (*body)(void*);
  void* args;
  const Options options;
  const std::vector<Buffer> buffers;
  std::size_t blocks, unit_blocks, units;
  int threads;  // per block
  std::vector<std::size_t> unit_order;

  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> failed_at{0};  // the first failed unit; those after it are skipped
  std::mutex mutex{};                     // for what follows
  std::string error{};
  std::map<std::string, BufferCounters> traffic{};
  RunCounters counters{};
  char start_tag = 0, end_tag = 0;
};

// Runs units of a launch (a cluster, or a whole cooperative grid) on one OS thread.
class Worker {
 public:
  explicit Worker(Launch& launch);
  ~Worker();
  void run();

  // ---- called on a fiber's stack
  void sync_block(Site site);
  void sync_cluster(bool relaxed, Site site);
  void sync_grid(Site site);
  void fence();
  void suspend();  // to the scheduler
  void maybe_preempt();
  std::uint64_t exchange(const WarpRequest& request, Site site);
  void check_global(const void* p, std::size_t bytes, Access kind, Site site);
  void check_shared(Block& block, std::size_t offset, std::size_t bytes, Access kind, Site site);
  [[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 3, 4)));
  [[noreturn]] void fiber_main();
  Block& block_at_rank(unsigned rank, Site site);

  Launch& launch;
  Fiber* running = nullptr;
  RunCounters counters;

 private:
  void run_unit(std::size_t unit);
  void set_up(std::size_t slot, std::size_t index);
  void release_memory();
  void resume(Fiber& f);
  void finish(Fiber& f);
  Fiber& pick();
  void make_ready(Fiber& f);
  void push_all_ready(std::size_t first_block, std::size_t blocks);

  void arrive(Barrier& barrier, State state, bool relaxed, Site site);
  void complete(Barrier& barrier, State state);
  void complete_warp(Fiber* lanes, unsigned mask);
  LaneTimes order_lanes(const Fiber* lanes, unsigned mask) const;
  void check_left_behind(Fiber& f);

  void check_progress(Site site);
  void order_by_counter(const void* counter);
  void count_global(int buffer, const void* p, std::size_t bytes, Access kind, Site site);
  void check_race(RaceCell* cells, std::size_t offset, std::size_t bytes, Access kind, Site site,
                  const char* memory);
  int find_buffer(const void* p, std::size_t bytes, bool store);
  void check_written(const Buffer& buffer, std::size_t offset, std::size_t bytes, Access kind,
                     Site site);
  [[noreturn]] void fail_bounds(const void* p, std::size_t bytes, bool store, Site site);

  void set_error(const Fiber& f, Site site, const char* text);
  void report_deadlock();
  std::uint64_t random();

  Context scheduler_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Cluster> clusters_;
  Barrier grid_barrier_;
  std::vector<Fiber*> ready_;
  std::vector<char*> stacks_;
  std::size_t stack_bytes_;
  int live_ = 0;
  std::uint64_t accesses_ = 0;  // since a thread was last chosen
  std::uint32_t now_ = 0;       // barriers completed
  std::uint64_t rng_ = 0;
  std::string error_;                    // empty while all is well
  std::vector<BufferCounters> traffic_;  // the last one is for memory nobody registered
  using Cells = std::unique_ptr<RaceCell[], void (*)(void*)>;
  std::vector<Cells> global_cells_;
  std::map<const void*, Releases> counters_;  // in global memory, and who added to them
  int last_buffer_ = 0;
};

extern constinit thread_local Worker* worker __attribute__((tls_model("initial-exec")));

const char* base_name(const char* path);

}  // namespace hostcuda
