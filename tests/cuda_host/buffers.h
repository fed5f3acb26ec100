// Which memory a call may touch, as the runtime needs to know it.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "cuda_host/hostcuda.h"
#include "engine/map.h"

namespace hostcuda {

// Visits the arrays of a call (csrc/engine/run.h).
class Buffers {
 public:
  explicit Buffers(BufferScope& known) : known_(known) {}

  void input(const std::string& name, const void* p, chattn::index_t bytes) {
    if (is_new(name, p)) known_.input(p, static_cast<std::size_t>(bytes), name.c_str());
  }
  void output(const std::string& name, void* p, chattn::index_t bytes) {
    if (is_new(name, p)) known_.output(p, static_cast<std::size_t>(bytes), name.c_str());
  }
  void changed(const std::string& name, void* p, chattn::index_t bytes) {
    if (is_new(name, p)) known_.changed(p, static_cast<std::size_t>(bytes), name.c_str());
  }
  void inputs(const char* name, const chattn::Branches& x, const chattn::MapShape& map) {
    each(name, x, map, [&](const auto&... buffer) { input(buffer...); });
  }
  void outputs(const char* name, const chattn::MutableBranches& x, const chattn::MapShape& map) {
    each(name, x, map, [&](const auto&... buffer) { output(buffer...); });
  }

 private:
  // Two pointers of a call may be one array, under one name.
  bool is_new(const std::string& name, const void* p) {
    return p != nullptr && seen_.emplace(name, p).second;
  }

  // Neighbouring slices of one map are one buffer, which begins with the first of them.
  template <class Pointer, class Add>
  static void each(const std::string& name, const chattn::BranchesOf<Pointer>& x,
                   const chattn::MapShape& map, Add&& add) {
    using chattn::index_t;
    const index_t runs = map.channels_last ? map.n * map.hw : map.n;
    const index_t run = map.elements() / runs * size_of(map.dtype);
    const index_t before_last = (runs - 1) * (run + x.gap * size_of(map.dtype));
    bool neighbours = x.gap != 0;
    for (int m = 1; m < x.count; ++m)
      neighbours = neighbours &&
                   static_cast<const char*>(x.at[m]) == static_cast<const char*>(x.at[0]) + m * run;
    if (neighbours) return add(name, x.at[0], before_last + x.count * run);
    for (int m = 0; m < x.count; ++m) add(name + std::to_string(m), x.at[m], before_last + run);
  }

  BufferScope& known_;
  std::set<std::pair<std::string, const void*>> seen_;
};

}  // namespace hostcuda
