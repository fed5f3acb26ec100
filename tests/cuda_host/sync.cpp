// Barriers and warp operations.
#include <algorithm>

#include "cuda_host/runtime.h"

namespace hostcuda {

// ---- barriers
void Worker::arrive(Barrier& barrier, State state, bool relaxed, Site site) {
  Fiber& f = *running;
  if (barrier.arrived == 0) {
    barrier.first = site;
    barrier.relaxed = relaxed;
  } else if (barrier.first.line() != site.line() || barrier.first.column() != site.column() ||
             barrier.first.file_name() != site.file_name()) {
    fail(site, "divergent barrier: other threads wait in the one at %s:%u",
         base_name(barrier.first.file_name()), static_cast<unsigned>(barrier.first.line()));
  }
  char* tag = &barrier.tags[barrier.phase & 1];
  if (!relaxed) release(tag);
  f.state = state;
  f.waits_at = site;
  if (++barrier.arrived == barrier.live) complete(barrier, state);
  suspend();
  if (!relaxed) acquire(tag);
}

void Worker::complete(Barrier& barrier, State state) {
  barrier.arrived = 0;
  ++barrier.phase;
  ++now_;
  if (state == State::in_block) ++counters.block_barriers;
  if (state == State::in_cluster) ++counters.cluster_barriers;
  if (state == State::in_grid) ++counters.grid_barriers;
  const bool ascending = launch.options.order == Order::reverse;
  for (std::size_t i = 0; i < barrier.blocks; ++i) {
    Block& b = *blocks_[barrier.first_block + (ascending ? i : barrier.blocks - 1 - i)];
    if (launch.options.counters)
      for (Warp& w : b.warps) w.requests.converge();
    for (std::size_t t = 0; t < b.fibers.size(); ++t) {
      Fiber& f = b.fibers[ascending ? t : b.fibers.size() - 1 - t];
      if (f.state != state) continue;
      if (!barrier.relaxed) {
        if (state == State::in_block) f.passed.block = now_;
        if (state == State::in_cluster) f.passed.cluster = now_;
        if (state == State::in_grid) f.passed.grid = now_;
        b.acquired.insert(b.acquired.end(), f.acquired.begin(), f.acquired.end());
        f.acquired.clear();
      }
      make_ready(f);
    }
  }
}

void Worker::sync_block(Site site) {
  arrive(running->owner->barrier, State::in_block, false, site);
}

void Worker::sync_cluster(bool relaxed, Site site) {
  arrive(running->owner->cluster->barrier, State::in_cluster, relaxed, site);
}

void Worker::sync_grid(Site site) {
  if (!launch.config.cooperative) fail(site, "grid_sync in a launch that is not cooperative");
  if (grid_barrier_.live < launch.threads * static_cast<int>(launch.unit_blocks))
    fail(site, "grid_sync after a thread of the grid has exited");
  arrive(grid_barrier_, State::in_grid, false, site);
}

void Worker::fence() {
  Fiber& f = *running;
  f.fenced = f.passed.block;
  f.acquired.insert(f.acquired.end(), f.seen.begin(), f.seen.end());
  f.seen.clear();
}

// What a thread must not leave behind when it exits.
void Worker::check_left_behind(Fiber& f) {
  Block& b = *f.owner;
  Fiber* lanes = &f - f.lane;
  for (unsigned rest = f.warp->waiting; rest != 0; rest &= rest - 1) {
    const Fiber& waiting = lanes[__builtin_ctz(rest)];
    if (waiting.request.mask >> f.lane & 1)
      set_error(f, waiting.waits_at, "a thread exits that others wait for in the warp operation");
  }
  if (grid_barrier_.arrived > 0)
    set_error(f, grid_barrier_.first, "a thread exits that others wait for in grid_sync");
  if (b.barrier.live == 0 && b.visited && b.visit_phase == b.cluster->barrier.phase)
    set_error(f, b.visit_site,
              "a block exits with no cluster barrier after another one's access to its shared "
              "memory");
}

// ---- warps
std::uint64_t Worker::exchange(const WarpRequest& request, Site site) {
  Fiber& f = *running;
  Warp& w = *f.warp;
  const unsigned mask = request.mask;
  if (!(mask >> f.lane & 1)) fail(site, "warp operation whose mask 0x%x lacks the own lane", mask);
  if (mask & ~w.lanes)
    fail(site, "warp operation whose mask 0x%x names lanes that do not exist", mask);
  if (mask & w.exited) fail(site, "warp operation whose mask 0x%x names exited lanes", mask);
  if (request.width <= 0 || request.width > 32 || (request.width & (request.width - 1)) != 0)
    fail(site, "shuffle width %d is no power of two up to 32", request.width);
  Fiber* lanes = &f - f.lane;
  unsigned together = 1u << f.lane;
  for (unsigned rest = w.waiting & mask; rest != 0; rest &= rest - 1) {
    const Fiber& other = lanes[__builtin_ctz(rest)];
    if (other.request.mask == mask && other.request.op == request.op &&
        other.request.width == request.width) {
      together |= 1u << other.lane;
      continue;
    }
    if (!(other.request.mask >> f.lane & 1)) continue;  // it comes here later
    fail(site, "warp operation in which lane %d waits in another one (mask 0x%x, %s:%u)",
         other.lane, other.request.mask, base_name(other.waits_at.file_name()),
         static_cast<unsigned>(other.waits_at.line()));
  }
  f.request = request;
  f.state = State::in_warp;
  f.waits_at = site;
  w.waiting |= 1u << f.lane;
  if (HOSTCUDA_TSAN && request.op == WarpOp::sync) release(&w.tags[f.lane][w.parity >> f.lane & 1]);
  if (together == mask) complete_warp(lanes, mask);
  suspend();
  if (HOSTCUDA_TSAN && request.op == WarpOp::sync)
    for (unsigned lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1) acquire(&w.tags[lane][f.request.bits >> lane & 1]);
  return f.request.bits;
}

namespace {

// The lane whose value a shuffle returns.
int shuffle_source(const WarpRequest& r, int lane) {
  const int low = lane & ~(r.width - 1), high = low + r.width - 1;
  int source = lane;
  if (r.op == WarpOp::shfl) source = low + (r.argument & (r.width - 1));
  if (r.op == WarpOp::shfl_xor) source = lane ^ r.argument;
  if (r.op == WarpOp::shfl_down) source = lane + r.argument;
  if (r.op == WarpOp::shfl_up) source = lane - r.argument < low ? lane : lane - r.argument;
  return source > high ? lane : source;
}

}  // namespace

LaneTimes Worker::order_lanes(const Fiber* lanes, unsigned mask) const {
  LaneTimes merged{};
  for (std::size_t i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    for (std::size_t j = 0; j < 32; ++j) merged[j] = std::max(merged[j], lanes[i].lanes[j]);
  }
  for (std::size_t i = 0; i < 32; ++i)
    if (mask >> i & 1) merged[i] = now_;
  return merged;
}

void Worker::complete_warp(Fiber* lanes, unsigned mask) {
  Warp& w = *lanes[__builtin_ctz(mask)].warp;
  const WarpRequest first = lanes[__builtin_ctz(mask)].request;
  std::uint64_t in[32] = {}, out[32] = {};
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    in[i] = lanes[i].request.bits;
    if (in[i] & 1) ballot |= 1u << i;
  }
  if (first.op == WarpOp::reduce) {
    for (int step = first.width / 2; step > 0; step /= 2) {
      for (int i = 0; i < 32; ++i) out[i] = first.combine(in[i], in[i ^ step]);
      std::copy(out, out + 32, in);
    }
    std::copy(in, in + 32, out);
  }
  LaneTimes ordered{};
  if (first.op == WarpOp::sync) {
    ++now_;
    if (launch.options.races) ordered = order_lanes(lanes, mask);
  }
  const bool ascending = launch.options.order == Order::reverse;
  for (int n = 0; n < 32; ++n) {
    const int i = ascending ? n : 31 - n;
    if (!(mask >> i & 1)) continue;
    Fiber& f = lanes[i];
    switch (first.op) {
      case WarpOp::sync:
        f.lanes = ordered;
        f.request.bits = w.parity;  // for acquire(): which of each lane's two tags is meant
        break;
      case WarpOp::ballot:
        f.request.bits = ballot;
        break;
      case WarpOp::reduce:
        f.request.bits = out[i];
        break;
      default: {
        const int source = shuffle_source(f.request, i);
        // The value of a lane outside the mask is undefined: all ones, a NaN.
        f.request.bits = mask >> source & 1 ? in[source] : ~std::uint64_t{0};
      }
    }
    make_ready(f);
  }
  w.waiting &= ~mask;
  if (first.op == WarpOp::sync) w.parity ^= mask;
  ++counters.warp_operations;
  if (launch.options.counters && mask == (w.lanes & ~w.exited)) w.requests.converge();
}

// ---- what kernels call
void sync_block(Site site) {
  const Unobserved u;
  worker->sync_block(site);
}
void sync_cluster(bool relaxed, Site site) {
  const Unobserved u;
  worker->sync_cluster(relaxed, site);
}
void sync_grid(Site site) {
  const Unobserved u;
  worker->sync_grid(site);
}
void fence() {
  const Unobserved u;
  worker->fence();
}
std::uint64_t warp_exchange(const WarpRequest& request, Site site) {
  const Unobserved u;
  return worker->exchange(request, site);
}
unsigned cluster_rank() { return worker->running->owner->rank; }
unsigned cluster_size() { return worker->launch.config.cluster; }

}  // namespace hostcuda
