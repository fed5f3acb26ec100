// Calls of a block in float32 without torch: kernels of one type instead of four, for the tests
// that build many changed copies of csrc/. direct.py compiles it for each of its libraries, with
// the block's plan.h as BLOCK_PLAN and the calls as BLOCK_CALLS.
#include BLOCK_PLAN

#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda_host/buffers.h"
#include "cuda_host/hostcuda.h"
#include "engine/cuda/run.h"
#include "engine/options.h"

#define DIRECT_API extern "C" __attribute__((visibility("default")))

namespace chattn::direct {

using Arrays = std::map<std::string, float*>;

// Gives a call its arrays: those that there are of the names that it visits.
struct Bind {
  const Arrays& given;

  float* at(const std::string& name) const {
    const auto found = given.find(name);
    return found == given.end() ? nullptr : found->second;
  }
  void input(const char* name, const void*& p, index_t) const { p = at(name); }
  void output(const char* name, void*& p, index_t) const { p = at(name); }
  void changed(const char* name, void*& p, index_t) const { p = at(name); }
  void inputs(const char* name, Branches& x, const MapShape& map) const { branches(name, x, map); }
  void outputs(const char* name, MutableBranches& x, const MapShape& map) const {
    branches(name, x, map);
  }

  // Slices of one array, or arrays of their own.
  template <class Maps>
  void branches(const std::string& name, Maps& x, const MapShape& map) const {
    float* const first = at(name);
    const index_t slice = map.channels_last ? map.c : map.c * map.hw;
    if (first) x.gap = (x.count - 1) * slice;
    for (int m = 0; m < x.count; ++m)
      x.at[m] = first ? first + m * slice : at(name + std::to_string(m));
  }
};

// "reduce_splits=2 ...", of plans within plans.
struct Fields {
  std::string& text;
  std::string prefix = "";

  template <class Value>
  void operator()(const char* name, const Value& value) const {
    if constexpr (std::is_class_v<Value>)
      value.fields(Fields{text, prefix + name + "_"});
    else
      text += prefix + name + "=" + std::to_string(static_cast<long long>(value)) + " ";
  }
};

// "rd=40 channels_last=1"
inline Options options_of(const char* text) {
  std::map<std::string, std::string> given;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const std::size_t at = word.find('=');
    given[word.substr(0, at)] = word.substr(at + 1);
  }
  return Options(given);
}

// "x dy ..."
inline Arrays arrays_of(const char* names, float* const* arrays) {
  Arrays given;
  std::istringstream words(names);
  for (std::string name; words >> name;) given[name] = *arrays++;
  return given;
}

template <class Call>
Call call_of(Options options, const Arrays& arrays) {
  Call p{};
  p.map.n = options.integer("n");
  p.map.c = options.integer("c");
  p.map.hw = options.integer("hw");
  p.map.channels_last = options.flag("channels_last");
  p.set(options);
  options.finish(Call::kName);
  Call::arrays(p, Bind{arrays});
  return p;
}

// As cuda_host/host_runner.h.
template <class Call>
void launch(const Call& p) {
  const auto size = static_cast<std::size_t>(cuda::scratch_elements(p));
  std::vector<float> scratch(size + 4);
  hostcuda::BufferScope known;
  Call::arrays(p, hostcuda::Buffers(known));
  known.scratch(scratch.data(), sizeof(float) * size, "scratch");
  const Status status = cuda::run_as<float>(p, scratch.data(), known.stream());
  if (!status.ok) throw hostcuda::LaunchError(status.text);
  known.require_written(Call::kName);
}

// f(the call of that name)
template <class... Calls>
struct Block {
  template <class F>
  static void with(const char* call, const char* options, const char* names, float* const* arrays,
                   F&& f) {
    const bool known =
        ((std::strcmp(call, Calls::kName) == 0 &&
          (f(call_of<Calls>(options_of(options), arrays_of(names, arrays))), true)) ||
         ...);
    Options::require(known, std::string("no call ") + call);
  }
};

}  // namespace chattn::direct

using namespace chattn;

// Runs a call. Returns 0, or 1 with the error's text.
DIRECT_API int direct_run(const char* call, const char* options, const char* names,
                          float* const* arrays, char* error, std::size_t size) {
  try {
    direct::Block<BLOCK_CALLS>::with(call, options, names, arrays,
                                     [](const auto& p) { direct::launch(p); });
  } catch (const hostcuda::LaunchError& e) {
    std::snprintf(error, size, "%s", e.what());
    return 1;
  }
  return 0;
}

// Tells the call's plan: "reduce_splits=2 ...".
DIRECT_API void direct_plan(const char* call, const char* options, const char* names,
                            float* const* arrays, char* plan, std::size_t size) {
  std::string text;
  direct::Block<BLOCK_CALLS>::with(call, options, names, arrays, [&](const auto& p) {
    cuda::plan_of(p).fields(direct::Fields{text});
  });
  std::snprintf(plan, size, "%s", text.c_str());
}
