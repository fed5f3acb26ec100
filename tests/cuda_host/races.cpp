#include "cuda_host/races.h"

#include <algorithm>

namespace hostcuda {
namespace {

constexpr std::uint32_t kThreads = 1024;  // most that a block can have

std::uint32_t block_of(std::uint32_t thread) { return thread / kThreads; }
std::uint32_t warp_of(std::uint32_t thread) { return thread / 32; }

}  // namespace

bool RaceCell::ordered(const Stamp& before, const ThreadTime& me) {
  if (before.who == 0) return true;
  const std::uint32_t other = before.who - 1;
  if (other == me.thread) return true;
  std::uint32_t passed = me.passed.grid;
  if (block_of(other) / me.cluster_blocks == block_of(me.thread) / me.cluster_blocks)
    passed = std::max(passed, me.passed.cluster);
  if (block_of(other) == block_of(me.thread)) passed = std::max(passed, me.passed.block);
  if (warp_of(other) == warp_of(me.thread)) passed = std::max(passed, (*me.lanes)[other % 32]);
  for (const Releases* acquired : {me.own, me.of_block})
    for (const Release& r : *acquired)
      if (r.block == block_of(other)) passed = std::max(passed, r.when);
  return passed > before.when;
}

Conflict RaceCell::read(const ThreadTime& me, Site site) {
  if (!ordered(writer_, me)) return {"read after write", writer_.who - 1, true, writer_site_};
  const Stamp last = readers_[0];
  if (last.who != 0 && last.who - 1 != me.thread) {
    readers_[1] = last;
    if (warp_of(last.who - 1) != warp_of(me.thread)) readers_[2] = last;
    if (block_of(last.who - 1) != block_of(me.thread)) readers_[3] = last;
  }
  readers_[0] = {me.thread + 1, me.now};
  reader_site_ = site;
  return {};
}

Conflict RaceCell::write(const ThreadTime& me, bool atomic, Site site) {
  if (!(atomic && atomic_) && !ordered(writer_, me))
    return {"write after write", writer_.who - 1, true, writer_site_};
  for (int i = 0; i < 4; ++i)
    if (!ordered(readers_[i], me))
      return {"write after read", readers_[i].who - 1, i == 0, reader_site_};
  writer_ = {me.thread + 1, me.now};
  writer_site_ = site;
  atomic_ = atomic;
  return {};
}

Conflict RaceCell::access(const ThreadTime& me, Access kind, Site site) {
  if (kind == Access::load_once) streamed_ = true;
  if (kind == Access::load || kind == Access::load_once) return read(me, site);
  return write(me, kind == Access::atomic, site);
}

}  // namespace hostcuda
