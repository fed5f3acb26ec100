#include "cuda_host/counters.h"

#include <dlfcn.h>

#include <bit>
#include <mutex>
#include <sstream>

#include "cuda_host/hostcuda.h"

namespace hostcuda {

void RunCounters::add(const RunCounters& o) {
  block_barriers += o.block_barriers;
  cluster_barriers += o.cluster_barriers;
  grid_barriers += o.grid_barriers;
  warp_operations += o.warp_operations;
  shared_load_bytes += o.shared_load_bytes;
  shared_store_bytes += o.shared_store_bytes;
  threads += o.threads;
  switches += o.switches;
}

RequestTable::Call& RequestTable::find(const void* site) {
  if (last_ < calls_.size() && calls_[last_].site == site) return calls_[last_];
  for (last_ = 0; last_ < calls_.size(); ++last_)
    if (calls_[last_].site == site) return calls_[last_];
  calls_.push_back({site, {}, {}});
  return calls_.back();
}

void RequestTable::count(Site site, int lane, const void* p, std::size_t bytes, Traffic& traffic) {
  static_assert(sizeof(Site) == sizeof(const void*), "one pointer identifies a call site");
  Call& call = find(std::bit_cast<const void*>(site));
  const std::uint32_t n = call.executions[static_cast<std::size_t>(lane)]++;
  if (n >= call.requests.size()) call.requests.resize(n + 1);
  Request& request = call.requests[n];
  // 32 bits tell the sectors of one request apart.
  const auto sector = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(p) / 32);
  traffic.bytes += bytes;
  for (int i = request.sectors; i-- > 0;)
    if (request.sector[static_cast<std::size_t>(i)] == sector) return;
  if (request.sectors == 0) ++traffic.requests;
  ++traffic.sectors;
  request.sector[static_cast<std::size_t>(request.sectors++)] = sector;
}

void RequestTable::converge() {
  for (Call& call : calls_) {
    call.executions.fill(0);
    call.requests.clear();
  }
}

// ---- the report
namespace {

std::mutex report_mutex;

Report& report() {
  static Report r;
  return r;
}

void write(std::ostream& out, const char* name, const Traffic& t) {
  out << '"' << name << "_bytes\": " << t.bytes << ", \"" << name << "_sectors\": " << t.sectors
      << ", \"" << name << "_requests\": " << t.requests;
}

void write(std::ostream& out, const char* name, const dim3& d) {
  out << '"' << name << "\": [" << d.x << ", " << d.y << ", " << d.z << ']';
}

// Kernel and buffer names are C++ identifiers and template arguments, but a quote would break JSON.
std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

// A function's name, as its library exports it.
std::string symbol_of(const void* function) {
  Dl_info info{};
  const bool known = dladdr(function, &info) != 0 && info.dli_sname != nullptr;
  return known ? info.dli_sname : "";
}

}  // namespace

std::size_t record_launch(const char* name, const chattn::LaunchConfig& config,
                          const void* kernel) {
  const std::lock_guard lock(report_mutex);
  report().launches.push_back({name, config, kernel});
  return report().launches.size() - 1;
}

void record_counters(const std::map<std::string, BufferCounters>& buffers, const RunCounters& run) {
  const std::lock_guard lock(report_mutex);
  for (const auto& [name, counters] : buffers) report().buffers[name].add(counters);
  report().run.add(run);
}

void reset_report() {
  const std::lock_guard lock(report_mutex);
  report() = Report{};
}

std::string report_json() {
  const std::lock_guard lock(report_mutex);
  const Report& r = report();
  std::ostringstream out;
  out << "{\"launches\": [";
  for (std::size_t i = 0; i < r.launches.size(); ++i) {
    const LaunchRecord& l = r.launches[i];
    out << (i ? ", " : "") << "{\"kernel\": " << quoted(l.kernel)
        << ", \"symbol\": " << quoted(symbol_of(l.function)) << ", ";
    write(out, "grid", l.config.grid);
    out << ", ";
    write(out, "block", l.config.block);
    out << ", \"shared_bytes\": " << l.config.shared_bytes << ", \"cluster\": " << l.config.cluster
        << '}';
  }
  out << "], \"buffers\": {";
  const char* separator = "";
  for (const auto& [name, c] : r.buffers) {
    out << separator << quoted(name) << ": {";
    write(out, "load", c.load);
    out << ", ";
    write(out, "store", c.store);
    out << ", \"atomics\": " << c.atomics << '}';
    separator = ", ";
  }
  out << "}, \"block_barriers\": " << r.run.block_barriers
      << ", \"cluster_barriers\": " << r.run.cluster_barriers
      << ", \"grid_barriers\": " << r.run.grid_barriers
      << ", \"warp_operations\": " << r.run.warp_operations
      << ", \"shared_load_bytes\": " << r.run.shared_load_bytes
      << ", \"shared_store_bytes\": " << r.run.shared_store_bytes
      << ", \"threads\": " << r.run.threads << ", \"switches\": " << r.run.switches << '}';
  return out.str();
}

}  // namespace hostcuda
