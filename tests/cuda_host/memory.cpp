// Checks and counters behind every access to global and shared memory.
#include "cuda_host/runtime.h"

namespace hostcuda {
namespace {

bool is_store(Access kind) { return kind == Access::store || kind == Access::atomic; }

const char* verb(Access kind) {
  return kind == Access::store ? "store" : kind == Access::atomic ? "atomic" : "load";
}

}  // namespace

// Blocks and threads run one after the other, so one that waits for another in a loop waits for
// ever.
void Worker::check_progress(Site site) {
  constexpr std::uint64_t kPatience = 1 << 24;
  if (++accesses_ > kPatience)
    fail(site, "more than %llu accesses with no barrier between them: does it wait for a thread?",
         static_cast<unsigned long long>(kPatience));
}

// ---- global memory
int Worker::find_buffer(const void* p, std::size_t bytes, bool store) {
  const auto begin = reinterpret_cast<std::uintptr_t>(p), end = begin + bytes;
  const auto& buffers = launch.buffers;
  const auto fits = [&](std::size_t i) {
    return begin >= buffers[i].begin && end <= buffers[i].end && (buffers[i].writable() || !store);
  };
  if (fits(static_cast<std::size_t>(last_buffer_))) return last_buffer_;
  for (std::size_t i = 0; i < buffers.size(); ++i)
    if (fits(i)) return last_buffer_ = static_cast<int>(i);
  return -1;
}

void Worker::fail_bounds(const void* p, std::size_t bytes, bool store, Site site) {
  constexpr std::uintptr_t kNear = 4096;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const Buffer* nearest = nullptr;
  std::uintptr_t best = kNear;
  for (const Buffer& b : launch.buffers) {
    const std::uintptr_t distance = address < b.begin  ? b.begin - address
                                    : address >= b.end ? address - b.end
                                                       : 0;
    if (distance == 0 && address < b.end && address + bytes <= b.end)  // inside, so not writable
      fail(site, "store of %zu bytes to the read-only buffer '%s'", bytes, b.name.c_str());
    if (distance >= best) continue;
    best = distance;
    nearest = &b;
  }
  const char* what = store ? "store" : "load";
  if (!nearest) fail(site, "out-of-bounds %s of %zu bytes, far from any buffer", what, bytes);
  fail(site, "out-of-bounds %s of %zu bytes at byte %td of buffer '%s', which has %zu", what, bytes,
       static_cast<std::ptrdiff_t>(address - nearest->begin), nearest->name.c_str(),
       static_cast<std::size_t>(nearest->end - nearest->begin));
}

void Worker::count_global(int buffer, const void* p, std::size_t bytes, Access kind, Site site) {
  BufferCounters& c = buffer < 0 ? traffic_.back() : traffic_[static_cast<std::size_t>(buffer)];
  if (kind == Access::atomic) {
    ++c.atomics;
    return;
  }
  Fiber& f = *running;
  f.warp->requests.count(site, f.lane, p, bytes, is_store(kind) ? c.store : c.load);
}

void Worker::check_written(const Buffer& buffer, std::size_t offset, std::size_t bytes, Access kind,
                           Site site) {
  std::uint8_t* const written = &buffer.written[offset / kRaceUnit];
  const std::size_t units = (bytes + kRaceUnit - 1) / kRaceUnit;
  if (kind != Access::store && launch.options.uninitialized)
    for (std::size_t i = 0; i < units; ++i)
      if (!written[i])
        fail(site, "%s of '%s' at byte %zu, which nothing has written", verb(kind),
             buffer.name.c_str(), offset + i * kRaceUnit);
  if (is_store(kind)) std::fill(written, written + units, std::uint8_t{1});
}

void Worker::check_global(const void* p, std::size_t bytes, Access kind, Site site) {
  maybe_preempt();  // before the records, which must show the order of the accesses
  check_progress(site);
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (address % bytes != 0)
    fail(site, "misaligned global %s of %zu bytes at address 0x%zx", verb(kind), bytes,
         static_cast<std::size_t>(address));
  const Options& o = launch.options;
  int buffer = -1;
  if (!launch.buffers.empty()) {
    buffer = find_buffer(p, bytes, is_store(kind));
    if (buffer < 0 && o.bounds) fail_bounds(p, bytes, is_store(kind), site);
  }
  if (buffer >= 0) {
    const Buffer& b = launch.buffers[static_cast<std::size_t>(buffer)];
    if (b.written) check_written(b, address - b.begin, bytes, kind, site);
  }
  if (o.counters) count_global(buffer, p, bytes, kind, site);
  if (o.races && buffer >= 0) {
    const auto i = static_cast<std::size_t>(buffer);
    check_race(global_cells_[i].get(), address - launch.buffers[i].begin, bytes, kind, site,
               launch.buffers[i].name.c_str());
    if (kind == Access::atomic) order_by_counter(p);
  }
}

// ---- shared memory
void Worker::check_shared(Block& block, std::size_t offset, std::size_t bytes, Access kind,
                          Site site) {
  maybe_preempt();
  check_progress(site);
  Fiber& f = *running;
  const Options& o = launch.options;
  if (offset % bytes != 0)
    fail(site, "misaligned shared %s of %zu bytes at byte %zu", verb(kind), bytes, offset);
  if (&block != f.owner) {
    if (block.barrier.live == 0)
      fail(site, "access to the shared memory of block rank %u, which has exited", block.rank);
    if (block.cluster->barrier.phase == 0)
      fail(site,
           "access to the shared memory of block rank %u, which may not have started: no "
           "cluster barrier before",
           block.rank);
    block.visited = true;
    block.visit_phase = block.cluster->barrier.phase;
    block.visit_site = site;
  }
  (is_store(kind) ? counters.shared_store_bytes : counters.shared_load_bytes) += bytes;
  std::uint8_t* written = &block.written[offset / kRaceUnit];
  const std::size_t units = (bytes + kRaceUnit - 1) / kRaceUnit;
  if (kind != Access::store && o.uninitialized)
    for (std::size_t i = 0; i < units; ++i)
      if (!written[i])
        fail(site, "%s of shared memory that was never written, at byte %zu", verb(kind),
             offset + i * kRaceUnit);
  if (is_store(kind)) std::fill(written, written + units, std::uint8_t{1});
  if (o.races) check_race(block.cells.data(), offset, bytes, kind, site, "shared memory");
}

// ---- races
void Worker::order_by_counter(const void* counter) {
  Fiber& f = *running;
  Releases& others = counters_[counter];
  f.seen.insert(f.seen.end(), others.begin(), others.end());
  others.push_back({f.owner->index, f.fenced});
}

void Worker::check_race(RaceCell* cells, std::size_t offset, std::size_t bytes, Access kind,
                        Site site, const char* memory) {
  const Fiber& f = *running;
  const ThreadTime me{f.owner->index * 1024 + static_cast<std::uint32_t>(f.linear),
                      launch.config.cluster,
                      now_,
                      f.passed,
                      &f.lanes,
                      &f.acquired,
                      &f.owner->acquired};
  for (std::size_t i = offset / kRaceUnit; i <= (offset + bytes - 1) / kRaceUnit; ++i) {
    if (kind == Access::load_once && cells[i].written())
      fail(site, "load_stream of '%s' at byte %zu, which this launch has written", memory, offset);
    if (is_store(kind) && cells[i].streamed())
      fail(site, "store to '%s' at byte %zu, which this launch loads by load_stream", memory,
           offset);
    const Conflict c = cells[i].access(me, kind, site);
    if (!c.kind) continue;
    char other[96] = "";
    if (c.has_site)
      std::snprintf(other, sizeof other, " at %s:%u", base_name(c.site.file_name()),
                    static_cast<unsigned>(c.site.line()));
    fail(site, "race on '%s' at byte %zu: %s, no barrier orders it after block %u thread %u%s",
         memory, i * kRaceUnit, c.kind, c.thread / 1024, c.thread % 1024, other);
  }
}

// ---- what kernels call
void global_access(const void* p, std::size_t bytes, Access kind, Site site) {
  const Unobserved u;
  worker->check_global(p, bytes, kind, site);
}

SharedArray shared_array(std::size_t byte_offset, int count, int element_bytes, Site site) {
  const Unobserved u;
  Worker& w = *worker;
  const std::size_t size = w.launch.config.shared_bytes;
  const auto element = static_cast<std::size_t>(element_bytes);
  if (byte_offset % element != 0)
    w.fail(site, "shared array at byte %zu is not aligned to its %d-byte elements", byte_offset,
           element_bytes);
  if (count < 0 || byte_offset > size ||
      static_cast<std::size_t>(count) > (size - byte_offset) / element)
    w.fail(site, "shared array of %d elements of %d bytes at byte %zu exceeds the launch's %zu",
           count, element_bytes, byte_offset, size);
  Block& b = *w.running->owner;
  return {b.shared + byte_offset, &b, count, element_bytes};
}

SharedArray at_rank(const SharedArray& array, unsigned rank, Site site) {
  const Unobserved u;
  Block& other = worker->block_at_rank(rank, site);
  return {other.shared + (array.p - array.owner->shared), &other, array.count, array.element_bytes};
}

Block& Worker::block_at_rank(unsigned rank, Site site) {
  if (rank >= launch.config.cluster)
    fail(site, "rank %u in a cluster of %u", rank, launch.config.cluster);
  return *blocks_[running->owner->cluster->barrier.first_block + rank];
}

unsigned char* shared_access(const SharedArray& array, int index, int elements, Access kind,
                             Site site) {
  const Unobserved u;
  Worker& w = *worker;
  if (index < 0 || index > array.count - elements)
    w.fail(site, "out-of-bounds shared %s of element%s %d..%d in an array of %d", verb(kind),
           elements > 1 ? "s" : "", index, index + elements - 1, array.count);
  unsigned char* p = array.p + static_cast<std::ptrdiff_t>(index) * array.element_bytes;
  w.check_shared(*array.owner, static_cast<std::size_t>(p - array.owner->shared),
                 static_cast<std::size_t>(elements * array.element_bytes), kind, site);
  return p;
}

}  // namespace hostcuda
