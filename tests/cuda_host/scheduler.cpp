// Starting, choosing and ending threads.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda_host/runtime.h"
#include "cuda_host/stacks.h"

namespace hostcuda {

constinit thread_local ThreadIndices* current = nullptr;
constinit thread_local Worker* worker = nullptr;

namespace {

// At the low end of each stack; gone when the stack overflowed.
constexpr std::uint64_t kCanary = 0x5ca1ab1e0ddba11;

void enter_fiber() { worker->fiber_main(); }

std::size_t stack_size(const Options& o) {
  if (o.stack_kib > 0) return static_cast<std::size_t>(o.stack_kib) << 10;
  return (HOSTCUDA_ASAN || HOSTCUDA_TSAN ? 256u : 64u) << 10;
}

bool less_urgent(const Fiber* a, const Fiber* b) { return a->priority < b->priority; }

const char* wait_name(State s) {
  switch (s) {
    case State::in_warp:
      return "wait in a warp operation";
    case State::in_block:
      return "wait in __syncthreads";
    case State::in_cluster:
      return "wait in cluster_sync";
    case State::in_grid:
      return "wait in grid_sync";
    default:
      return "have exited";
  }
}

}  // namespace

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

Worker::Worker(Launch& l) : launch(l), stack_bytes_(stack_size(l.options)) {
  traffic_.resize(launch.buffers.size() + 1);
  for (const Buffer& b : launch.buffers) {
    const std::size_t cells = launch.options.races ? (b.end - b.begin) / kRaceUnit + 1 : 1;
    // calloc, because untouched pages then cost nothing. All-zero is a valid empty cell.
    global_cells_.push_back(
        Cells(static_cast<RaceCell*>(std::calloc(cells, sizeof(RaceCell))), std::free));
  }
  adopt_current(scheduler_);
  worker = this;
}

Worker::~Worker() {
  release_memory();
  give_back_stacks(stacks_, stack_bytes_);
  worker = nullptr;
  current = nullptr;
}

void Worker::run() {
  for (;;) {
    const std::size_t turn = launch.next++;
    if (turn >= launch.units || turn > launch.failed_at) break;
    run_unit(launch.unit_order[turn]);
    if (error_.empty()) continue;
    const std::lock_guard lock(launch.mutex);
    if (turn < launch.failed_at) {
      launch.failed_at = turn;
      launch.error = error_;
    }
    break;
  }
  const std::lock_guard lock(launch.mutex);
  launch.counters.add(counters);
  if (!launch.options.counters) return;
  for (std::size_t i = 0; i < traffic_.size(); ++i) {
    const bool known = i < launch.buffers.size();
    if (!known && traffic_[i].load.bytes + traffic_[i].store.bytes == 0) continue;
    launch.traffic[known ? launch.buffers[i].name : "(unregistered)"].add(traffic_[i]);
  }
}

void Worker::set_up(std::size_t slot, std::size_t index) {
  const chattn::LaunchConfig& c = launch.config;
  const auto threads = static_cast<std::size_t>(launch.threads);
  while (blocks_.size() <= slot) {
    auto block = std::make_unique<Block>();
    block->fibers.resize(threads);
    block->warps.resize((threads + 31) / 32);
    block->written.resize((c.shared_bytes + kRaceUnit - 1) / kRaceUnit);
    if (launch.options.races) block->cells.resize(block->written.size());
    blocks_.push_back(std::move(block));
  }
  Block& b = *blocks_[slot];
  if (b.shared == nullptr && c.shared_bytes > 0)
    b.shared = static_cast<unsigned char*>(map_pages(c.shared_bytes));
  if (launch.options.poison && b.shared) std::memset(b.shared, 0xff, c.shared_bytes);
  std::fill(b.written.begin(), b.written.end(), std::uint8_t{0});
  std::fill(b.cells.begin(), b.cells.end(), RaceCell{});
  b.index = static_cast<std::uint32_t>(index);
  b.rank = static_cast<unsigned>(index % c.cluster);
  b.position = {static_cast<unsigned>(index % c.grid.x),
                static_cast<unsigned>(index / c.grid.x % c.grid.y),
                static_cast<unsigned>(index / c.grid.x / c.grid.y)};
  b.cluster = &clusters_[slot / c.cluster];
  b.barrier = Barrier{};
  b.barrier.live = launch.threads;
  b.barrier.first_block = slot;
  b.visited = false;
  b.acquired.clear();
  for (Warp& w : b.warps) {
    w.lanes = w.waiting = w.exited = 0;
    w.requests.converge();
  }
  for (std::size_t t = 0; t < threads; ++t) {
    Fiber& f = b.fibers[t];
    const auto linear = static_cast<unsigned>(t);
    f.thread = {linear % c.block.x, linear / c.block.x % c.block.y,
                linear / (c.block.x * c.block.y)};
    f.block = b.position;
    f.block_dim = c.block;
    f.grid_dim = c.grid;
    f.state = State::ready;
    f.started = false;
    f.linear = static_cast<int>(t);
    f.lane = static_cast<int>(t % 32);
    f.warp = &b.warps[t / 32];
    f.warp->lanes |= 1u << f.lane;
    f.owner = &b;
    f.passed = Passed{};
    if (launch.options.races) f.lanes.fill(0);
    f.fenced = 0;
    f.seen.clear();
    f.acquired.clear();
  }
}

void Worker::run_unit(std::size_t unit) {
  const std::size_t blocks = launch.unit_blocks;
  const std::size_t cluster = launch.config.cluster;
  rng_ = (launch.options.seed + 1) * 0x9e3779b97f4a7c15ull ^ (unit + 1) * 0xd1342543de82ef95ull;
  for (int i = 0; i < 4; ++i) random();
  clusters_.resize(blocks / cluster);
  for (std::size_t i = 0; i < clusters_.size(); ++i) {
    clusters_[i].barrier = Barrier{};
    clusters_[i].barrier.live = launch.threads * static_cast<int>(cluster);
    clusters_[i].barrier.first_block = i * cluster;
    clusters_[i].barrier.blocks = cluster;
  }
  for (std::size_t slot = 0; slot < blocks; ++slot) set_up(slot, unit * blocks + slot);
  live_ = launch.threads * static_cast<int>(blocks);
  grid_barrier_ = Barrier{};
  grid_barrier_.live = live_;
  grid_barrier_.blocks = blocks;
  counters.threads += static_cast<std::uint64_t>(live_);
  ready_.clear();
  for (std::size_t slot = 0; slot < blocks; ++slot) {
    const std::uint64_t block_priority = random() << 48;
    std::uint64_t warp_priority = 0;
    for (Fiber& f : blocks_[slot]->fibers) {
      if (f.lane == 0) warp_priority = (random() & 0xffffff) << 24;
      f.priority = block_priority | warp_priority | (random() & 0xffffff);
    }
  }
  push_all_ready(0, blocks);
  while (live_ > 0 && error_.empty()) {
    if (ready_.empty()) {
      report_deadlock();
      break;
    }
    Fiber& f = pick();
    resume(f);
    if (f.state == State::done) finish(f);
  }
  if (HOSTCUDA_TSAN || !error_.empty()) release_memory();
}

// Also what an abandoned unit leaves behind.
void Worker::release_memory() {
  for (auto& block : blocks_) {
    for (Fiber& f : block->fibers) {
      if (!f.started) continue;
      retire(f.context, &launch.end_tag);
      char* stack = static_cast<char*>(const_cast<void*>(f.context.stack));
      recycle_stack(stack, stack_bytes_);
      stacks_.push_back(stack);
      f.started = false;
    }
    if (block->shared) unmap_pages(block->shared, launch.config.shared_bytes);
    block->shared = nullptr;
  }
}

// ---- order
std::uint64_t Worker::random() {
  rng_ ^= rng_ << 13;
  rng_ ^= rng_ >> 7;
  rng_ ^= rng_ << 17;
  return rng_;
}

void Worker::make_ready(Fiber& f) {
  f.state = State::ready;
  ready_.push_back(&f);
  if (launch.options.order == Order::prio)
    std::push_heap(ready_.begin(), ready_.end(), less_urgent);
}

// The stack is popped from the back, so the threads to run first are pushed last.
void Worker::push_all_ready(std::size_t first_block, std::size_t blocks) {
  const bool ascending = launch.options.order == Order::reverse;
  for (std::size_t i = 0; i < blocks; ++i) {
    auto& fibers = blocks_[first_block + (ascending ? i : blocks - 1 - i)]->fibers;
    for (std::size_t t = 0; t < fibers.size(); ++t)
      make_ready(fibers[ascending ? t : fibers.size() - 1 - t]);
  }
}

Fiber& Worker::pick() {
  if (launch.options.order == Order::prio)
    std::pop_heap(ready_.begin(), ready_.end(), less_urgent);
  else if (launch.options.order == Order::random)
    std::swap(ready_[random() % ready_.size()], ready_.back());
  Fiber& f = *ready_.back();
  ready_.pop_back();
  return f;
}

void Worker::maybe_preempt() {
  const double p = launch.options.preempt;
  if (p <= 0 || static_cast<double>(random() & 0xffffff) >= p * 0x1000000) return;
  Fiber& f = *running;
  f.priority = random();
  make_ready(f);
  const Order order = launch.options.order;
  if (order == Order::depth || order == Order::reverse)  // or it would be picked again
    std::rotate(ready_.begin(), ready_.end() - 1, ready_.end());
  suspend();
}

// ---- fibers
void Worker::resume(Fiber& f) {
  if (!f.started) {
    if (stacks_.empty()) take_stacks(stacks_, stack_bytes_);
    char* stack = stacks_.back();
    stacks_.pop_back();
    prepare(f.context, stack, stack_bytes_, enter_fiber);
    std::memcpy(stack, &kCanary, sizeof kCanary);
    f.started = true;
  }
  f.state = State::running;
  running = &f;
  current = &f;
  ++counters.switches;
  accesses_ = 0;
  switch_context(scheduler_, f.context, false);
  running = nullptr;
  current = nullptr;
}

void Worker::suspend() {
  end_unobserved();
  switch_context(running->context, scheduler_, false);
  begin_unobserved();
}

void Worker::fiber_main() {
  Fiber& f = *running;
  started_on(f.context, scheduler_);
  acquire(&launch.start_tag);
  try {
    launch.body(launch.args);
  } catch (const std::exception& e) {
    set_error(f, Site{}, e.what());
  }
  f.state = State::done;
  switch_context(f.context, scheduler_, true);
  std::abort();
}

void Worker::finish(Fiber& f) {
  Block& b = *f.owner;
  char* stack = static_cast<char*>(const_cast<void*>(f.context.stack));
  std::uint64_t canary;
  std::memcpy(&canary, stack, sizeof canary);
  if (canary != kCanary) set_error(f, Site{}, "stack overflow of the thread's CPU stack");
  retire(f.context, &launch.end_tag);
  recycle_stack(stack, stack_bytes_);
  stacks_.push_back(stack);
  f.started = false;
  f.warp->exited |= 1u << f.lane;
  --live_;
  --b.barrier.live;
  --b.cluster->barrier.live;
  --grid_barrier_.live;
  if (!error_.empty()) return;
  check_left_behind(f);
  if (b.barrier.live == 0 && launch.options.poison && b.shared)
    std::memset(b.shared, 0xff, launch.config.shared_bytes);
  for (const auto& [barrier, state] :
       {std::pair{&b.barrier, State::in_block}, std::pair{&b.cluster->barrier, State::in_cluster}})
    if (barrier->arrived > 0 && barrier->arrived == barrier->live) complete(*barrier, state);
}

// ---- errors
void Worker::set_error(const Fiber& f, Site site, const char* text) {
  if (!error_.empty()) return;
  char where[160] = "";
  if (site.line() > 0)
    std::snprintf(where, sizeof where, ", %s:%u", base_name(site.file_name()),
                  static_cast<unsigned>(site.line()));
  char line[1024];
  std::snprintf(line, sizeof line, "kernel %s%s, block (%u,%u,%u), thread (%u,%u,%u): %s",
                launch.name, where, f.block.x, f.block.y, f.block.z, f.thread.x, f.thread.y,
                f.thread.z, text);
  error_ = line;
}

// Formats into a plain array: the fiber never returns, so no destructor on its stack runs.
void Worker::fail(Site site, const char* format, ...) {
  char text[640];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  Fiber& f = *running;
  set_error(f, site, text);
  end_unobserved();
  switch_context(f.context, scheduler_, true);
  std::abort();
}

void Worker::report_deadlock() {
  std::map<std::string, int> groups;
  const Fiber* first = nullptr;
  for (std::size_t i = 0; i < launch.unit_blocks; ++i) {
    for (const Fiber& f : blocks_[i]->fibers) {
      std::string what = wait_name(f.state);
      if (f.state != State::done) {
        if (!first) first = &f;
        what += std::string(" at ") + base_name(f.waits_at.file_name()) + ':' +
                std::to_string(f.waits_at.line());
      }
      ++groups[what];
    }
  }
  std::string text = "deadlock: ";
  const char* separator = "";
  for (const auto& [what, threads] : groups) {
    text += separator + std::to_string(threads) + " threads " + what;
    separator = ", ";
  }
  set_error(*first, first->waits_at, text.c_str());
}

}  // namespace hostcuda
