// launch(): what a driver would refuse, and the workers.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "cuda_host/runtime.h"

namespace hostcuda {
namespace {

struct Profile {
  int sm, shared_kib, threads_per_sm;
  unsigned max_cluster;
};
constexpr Profile kProfiles[] = {
    {75, 64, 1024, 1},   {80, 163, 2048, 1},   {86, 99, 1536, 1},  {89, 99, 1536, 1},
    {90, 227, 2048, 16}, {100, 227, 2048, 16}, {120, 99, 1536, 8},
};

const Profile& profile(int sm) {
  for (const Profile& p : kProfiles)
    if (p.sm == sm) return p;
  throw LaunchError("no device profile for sm_" + std::to_string(sm));
}

std::size_t volume(const dim3& d) { return static_cast<std::size_t>(d.x) * d.y * d.z; }

void check_config(const char* name, const chattn::LaunchConfig& c, const Options& o) {
  const Profile& p = profile(o.sm);
  const std::size_t limit = static_cast<std::size_t>(p.shared_kib) << 10;
  std::string why;
  if (volume(c.grid) == 0 || volume(c.block) == 0)
    why = "an empty grid or block";
  else if (c.grid.x > 0x7fffffffu || c.grid.y > 65535 || c.grid.z > 65535)
    why = "a grid larger than 2147483647 x 65535 x 65535";
  else if (volume(c.block) > 1024 || c.block.z > 64)
    why = "more than 1024 threads per block";
  else if (c.shared_bytes > limit)
    why = std::to_string(c.shared_bytes) + " bytes of shared memory, more than the " +
          std::to_string(limit) + " of sm_" + std::to_string(o.sm);
  else if (c.cluster == 0 || c.cluster > p.max_cluster)
    why = "a cluster of " + std::to_string(c.cluster) + " blocks on sm_" + std::to_string(o.sm);
  else if (c.grid.x % c.cluster != 0)
    why = "a grid that is not a multiple of its cluster of " + std::to_string(c.cluster);
  else if (c.cooperative &&
           volume(c.grid) > static_cast<std::size_t>(o.multiprocessors) *
                                (static_cast<std::size_t>(p.threads_per_sm) / volume(c.block)))
    why = "a cooperative grid larger than the device holds at once";
  else if (o.races && volume(c.grid) >= (1u << 22))
    why = "more blocks than the race check can tell apart";
  else if (HOSTCUDA_TSAN && volume(c.block) * c.cluster > 8000)
    why = "more threads at once than ThreadSanitizer can follow";
  if (!why.empty()) throw LaunchError("kernel " + std::string(name) + ": launch with " + why);
}

std::vector<std::size_t> unit_order(std::size_t units, const Options& o) {
  std::vector<std::size_t> order(units);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (o.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (o.order == Order::random || o.order == Order::prio) {
    std::uint64_t state = o.seed;
    for (std::size_t i = units; i > 1; --i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(order[i - 1], order[(state >> 33) % i]);
    }
  }
  return order;
}

}  // namespace

Options& options() {
  static Options o;
  return o;
}

chattn::DeviceInfo device_info() {
  const Options& o = options();
  return {o.sm, o.multiprocessors, profile(o.sm).shared_kib << 10};
}

// ---- buffers
std::vector<Buffer>& buffers_of_thread() {
  static thread_local std::vector<Buffer> buffers;
  return buffers;
}

namespace {

// What launches must be given as their stream; null: anything.
const void*& stream_of_thread() {
  static thread_local const void* stream = nullptr;
  return stream;
}

// The launch that Options::delay puts off.
std::optional<LaunchCall>& delayed_launch() {
  static thread_local std::optional<LaunchCall> call;
  return call;
}

}  // namespace

void BufferScope::add(void* p, std::size_t bytes, const char* name, Role role) {
  if (bytes == 0 || !options().execute) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  Buffer buffer{begin, begin + bytes, name, role};
  if (role == Role::output || role == Role::scratch) {
    std::memset(p, 0xff, bytes);
    buffer.written = std::make_shared<std::uint8_t[]>((bytes + kRaceUnit - 1) / kRaceUnit);
  }
  buffers_of_thread().push_back(std::move(buffer));
}

void* BufferScope::stream() {
  stream_of_thread() = this;
  return this;
}

void BufferScope::require_written(const char* op) const {
  const auto& buffers = buffers_of_thread();
  for (std::size_t i = before_; i < buffers.size(); ++i) {
    const Buffer& b = buffers[i];
    if (b.role != Role::output) continue;
    const std::uint8_t* const first = b.written.get();
    const std::uint8_t* const last = first + (b.end - b.begin + kRaceUnit - 1) / kRaceUnit;
    const std::uint8_t* const gap = std::find(first, last, std::uint8_t{0});
    if (gap == last) continue;
    const std::string at = std::to_string(static_cast<std::size_t>(gap - first) * kRaceUnit);
    throw LaunchError(std::string(op) + ": no kernel wrote '" + b.name + "' at byte " + at + " (" +
                      std::to_string(kRaceUnit * std::count(gap, last, std::uint8_t{0})) +
                      " bytes are missing)");
  }
}

BufferScope::BufferScope()
    : before_(buffers_of_thread().size()), stream_before_(stream_of_thread()) {}
BufferScope::~BufferScope() {
  auto& buffers = buffers_of_thread();
  buffers.erase(buffers.begin() + static_cast<std::ptrdiff_t>(before_), buffers.end());
  stream_of_thread() = stream_before_;
  delayed_launch().reset();  // its memory is going away
}

// ---- launch
namespace {

void run_now(const LaunchCall& call, const Options& o) {
  const chattn::LaunchConfig& config = call.config;
  const std::size_t blocks = volume(config.grid);
  const std::size_t unit_blocks = config.cooperative ? blocks : config.cluster;
  const std::size_t units = blocks / unit_blocks;
  const int threads = static_cast<int>(volume(config.block));
  Launch launch{call.name,   config, call.body, call.args.get(),     o, buffers_of_thread(), blocks,
                unit_blocks, units,  threads,   unit_order(units, o)};
  launch.failed_at = units;
  release(&launch.start_tag);

  // Starting a thread costs more than running a small launch. The race check keeps one time line.
  constexpr std::size_t kWorthAThread = 4096;
  const bool alone = o.races || HOSTCUDA_TSAN || blocks * volume(config.block) < kWorthAThread;
  const std::size_t workers =
      alone ? 1 : std::min<std::size_t>(static_cast<std::size_t>(std::max(o.workers, 1)), units);
  const auto work = [&launch] { Worker(launch).run(); };
  {
    std::vector<std::jthread> others;
    for (std::size_t i = 1; i < workers; ++i) others.emplace_back(work);
    work();
  }
  acquire(&launch.end_tag);
  record_counters(launch.traffic, launch.counters);
  if (!launch.error.empty()) throw LaunchError(launch.error);
}

}  // namespace

void run(const LaunchCall& call) {
  const std::string name = std::string("kernel ") + call.name;
  if (worker) throw LaunchError(name + ": launched from a kernel");
  const Unobserved u;
  const Options o = options();
  check_config(call.name, call.config, o);
  if (stream_of_thread() && call.config.stream != stream_of_thread())
    throw LaunchError(name + ": launch on another stream than the operator's");
  const std::size_t number = record_launch(call.name, call.config, call.kernel);
  if (!o.execute) return;
  if (o.delay >= 0 && number == static_cast<std::size_t>(o.delay)) {
    delayed_launch() = call;
    return;
  }
  run_now(call, o);
  if (const std::optional<LaunchCall> late = std::exchange(delayed_launch(), std::nullopt))
    run_now(*late, o);
}

}  // namespace hostcuda
