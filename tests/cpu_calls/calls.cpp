// Calls of the CPU kernels without torch or Python, for processors that only an emulator is: of all
// blocks, element types and layouts. Prints every result; test_cpu_aarch64.py compares.
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "blocks/eca/params.h"
#include "blocks/grn/params.h"
#include "blocks/se/params.h"
#include "blocks/sk/params.h"
#include "blocks/tail/params.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/parallel.h"
#include "engine/options.h"

namespace chattn {
namespace {

// Arrays of accumulators, whatever the maps' type is.
const std::set<std::string> kAccumulators = {
    "pooled", "hidden",  "activated", "logits",   "dlogits", "gate",   "dgate",
    "norms",  "numbers", "means",     "variance", "sums",    "dpooled"};

double element(const void* array, DType type, index_t i) {
  switch (type) {
    case DType::f16:
      return to_acc(static_cast<const half_t*>(array)[i]);
    case DType::bf16:
      return to_acc(static_cast<const bfloat16_t*>(array)[i]);
    case DType::f32:
      return static_cast<const float*>(array)[i];
    default:
      return static_cast<const double*>(array)[i];
  }
}

void set_element(void* array, DType type, index_t i, double value) {
  const float narrow = static_cast<float>(value);
  if (type == DType::f16) static_cast<half_t*>(array)[i] = from_acc<half_t>(narrow);
  if (type == DType::bf16) static_cast<bfloat16_t*>(array)[i] = from_acc<bfloat16_t>(narrow);
  if (type == DType::f32) static_cast<float*>(array)[i] = narrow;
  if (type == DType::f64) static_cast<double*>(array)[i] = value;
}

// The arrays of calls that follow one another: what one has written another reads, by name. What
// nobody has written is random, in eighths that every type holds exactly.
class Chain {
 public:
  Chain(std::string title, DType type, std::set<std::string> absent)
      : title_(std::move(title)), type_(type), absent_(std::move(absent)) {}

  void input(const std::string& name, const void*& p, index_t bytes) { p = at(name, bytes); }
  void output(const std::string& name, void*& p, index_t bytes) {
    p = at(name, bytes);
    if (p && name != "mask") written_.push_back(name);  // a sign near zero may be either
  }
  void changed(const char*, void*&, index_t) {}
  void inputs(const std::string& name, Branches& x, const MapShape& map) { branches(name, x, map); }
  void outputs(const std::string& name, MutableBranches& x, const MapShape& map) {
    branches(name, x, map);
    for (int m = 0; m < x.count; ++m) written_.push_back(name + std::to_string(m));
  }

  template <class Call>
  void run(MapShape map, const std::map<std::string, std::string>& given) {
    Call call{};
    call.map = map;
    Options options(given);
    call.set(options);
    Call::arrays(call, *this);
    cpu::run(call, cpu::Parallel());
    for (const std::string& name : written_) {
      std::printf("%s %s %s", title_.c_str(), Call::kName, name.c_str());
      const DType type = type_of(name);
      const auto count = static_cast<index_t>(arrays_[name].size()) / size_of(type);
      for (index_t i = 0; i < count; ++i)
        std::printf(" %.17g", element(arrays_[name].data(), type, i));
      std::printf("\n");
    }
    written_.clear();
  }

 private:
  DType type_of(const std::string& name) const {
    const bool wide = type_ == DType::f64;
    return kAccumulators.count(name) == 0 ? type_ : wide ? DType::f64 : DType::f32;
  }

  void* at(const std::string& name, index_t bytes) {
    if (absent_.count(name) != 0) return nullptr;
    auto& array = arrays_[name];
    if (array.empty()) {
      // Rows of bits begin with a byte of their own here (MaskShape); what is told are dense ones.
      array.resize(static_cast<std::size_t>(name == "mask" ? 8 * bytes : bytes));
      const DType type = type_of(name);
      for (index_t i = 0; name != "mask" && i < bytes / size_of(type); ++i) {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        const double value = (static_cast<int>((state_ >> 33) % 33) - 16) / 8.0;
        set_element(array.data(), type, i, name == "var" ? std::fabs(value) + 0.5 : value);
      }
    }
    return array.data();
  }

  template <class Maps>
  void branches(const std::string& name, Maps& x, const MapShape& map) {
    for (int m = 0; m < x.count; ++m) x.at[m] = at(name + std::to_string(m), map.bytes());
  }

  std::string title_;
  DType type_;
  std::set<std::string> absent_;
  std::map<std::string, std::vector<unsigned char>> arrays_;
  std::vector<std::string> written_;
  std::uint64_t state_ = 1;
};

template <class... Calls>
void chain(const std::string& what, const std::map<std::string, std::string>& options,
           const std::set<std::string>& absent) {
  const char* const types[] = {"f32", "f16", "bf16", "f64"};
  for (int type = 0; type < 4; ++type) {
    for (const bool channels_last : {false, true}) {
      const std::string layout = channels_last ? "channels_last" : "nchw";
      const MapShape map{DType{type}, channels_last, 2, 19, 35};
      Chain arrays(what + " " + layout + " " + types[type], map.dtype, absent);
      (arrays.run<Calls>(map, options), ...);
    }
  }
}

}  // namespace
}  // namespace chattn

int main() {
  using namespace chattn;
  std::printf("%s\n", cpu::kernels().isa);
  for (int act = 0; act < kActCount; ++act)
    chain<SeForward, SeBackward>("se:" + std::to_string(act),
                                 {{"rd", "6"}, {"act", std::to_string(act)}}, {});
  chain<SeForward, SeBackward>("ese", {{"rd", "0"}}, {"w1", "b1"});
  chain<EcaForward, EcaBackward>("eca", {{"k", "5"}}, {});
  chain<GrnForward, GrnBackward>("grn", {}, {});
  chain<SkSqueeze, SkSelect, SkDot, SkGradient>("sk_passes", {{"branches", "3"}}, {"prologue"});
  chain<SkForward, SkBackward>("sk", {{"branches", "2"}, {"hidden", "6"}, {"norm", "fixed"}},
                               {"prologue", "batch_mean", "batch_var"});
  for (const char* inner : {"0", "1", "4"})  // identity, ReLU, SiLU
    chain<TailSqueeze, TailApply, TailReduce, TailGradient>(
        std::string("tail:") + inner, {{"inner", inner}, {"act", "1"}, {"of_batch", "1"}},
        {"mean", "var"});
}
