// What a launch moved, in the units a GPU moves it in.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cuda_host/device_host.h"

namespace hostcuda {

struct Traffic {
  std::uint64_t bytes = 0;
  std::uint64_t sectors = 0;   // distinct 32-byte sectors of each request
  std::uint64_t requests = 0;  // of a warp: its lanes at one call site, in one execution of it
  void add(const Traffic& o) {
    bytes += o.bytes;
    sectors += o.sectors;
    requests += o.requests;
  }
};

struct BufferCounters {
  Traffic load, store;
  std::uint64_t atomics = 0;
  void add(const BufferCounters& o) {
    load.add(o.load);
    store.add(o.store);
    atomics += o.atomics;
  }
};

struct RunCounters {
  std::uint64_t block_barriers = 0, cluster_barriers = 0, grid_barriers = 0, warp_operations = 0;
  std::uint64_t shared_load_bytes = 0, shared_store_bytes = 0;
  std::uint64_t threads = 0, switches = 0;
  void add(const RunCounters& o);
};

// Rebuilds the requests of one warp, whose lanes run one after the other, from call sites.
class RequestTable {
 public:
  // Counts one lane's access of at most 16 aligned bytes.
  void count(Site site, int lane, const void* p, std::size_t bytes, Traffic& traffic);
  // The lanes are together again: their next executions of a site belong to one request.
  void converge();

 private:
  struct Request {
    int sectors = 0;
    std::array<std::uint32_t, 32> sector;
  };
  struct Call {
    const void* site;
    std::array<std::uint32_t, 32> executions;
    std::vector<Request> requests;
  };
  Call& find(const void* site);
  std::vector<Call> calls_;
  std::size_t last_ = 0;
};

struct LaunchRecord {
  std::string kernel;
  chattn::LaunchConfig config;
  const void* function;  // the kernel, for its name
};

// Everything since reset_report().
struct Report {
  std::vector<LaunchRecord> launches;
  std::map<std::string, BufferCounters> buffers;
  RunCounters run;
};

// Adds one launch, and returns how many came before; safe from any thread.
std::size_t record_launch(const char* name, const chattn::LaunchConfig& config, const void* kernel);
void record_counters(const std::map<std::string, BufferCounters>& buffers, const RunCounters& run);

}  // namespace hostcuda
