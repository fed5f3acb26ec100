// The selective kernel: M branches, weighed by a softmax over them. Parameters of its operators;
// torch-free, for CPU and CUDA.
//
// The network between the mean and the logits is (N, d)-sized and may need statistics of the whole
// batch: it lies between the operators. The gate, the softmax of the logits, is computed by whoever
// needs it: that takes less than writing it and reading it.
#pragma once
#include "engine/map.h"
#include "engine/run.h"
#include "engine/running.h"

namespace chattn {

// The branches that a call reads or writes, by name: how many, and a prologue's activation.
// Options: engine/options.h.
template <class Options>
Branches branches_of(Options& options) {
  Branches x;
  const index_t count = options.integer("branches", 2);
  options.require(count >= 1 && count <= kMaxBranches, "there must be 1 to 4 branches");
  x.count = static_cast<int>(count);
  x.act = static_cast<Act>(options.integer("act", static_cast<int>(x.act)));
  x.act_param = options.number("act_param", x.act_param);
  return x;
}

// Arrays are dense; "acc" is acc_t of the maps' type. `map` is a branch's shape, and y's.
struct SkSqueeze {
  static constexpr const char* kName = "sk_squeeze";
  MapShape map;
  Branches x;
  void* pooled = nullptr;  // (N, C) acc, the mean of the branches' sum

  template <class Options>
  void set(Options& options) {
    x = branches_of(options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    v.inputs("x", p.x, p.map);
    v.input("prologue", p.x.prologue, p.map.acc_bytes(2 * p.x.count * p.map.c));
    v.output("pooled", p.pooled, p.map.acc_bytes(p.map.planes()));
  }
};

struct SkSelect {
  static constexpr const char* kName = "sk_select";
  MapShape map;
  Branches x;
  const void* logits = nullptr;  // (N, M, C) acc
  void* y = nullptr;

  template <class Options>
  void set(Options& options) {
    x = branches_of(options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    v.inputs("x", p.x, p.map);
    v.input("prologue", p.x.prologue, p.map.acc_bytes(2 * p.x.count * p.map.c));
    v.input("logits", p.logits, p.map.acc_bytes(p.x.count * p.map.planes()));
    v.output("y", p.y, p.map.bytes());
  }
};

struct SkDot {
  static constexpr const char* kName = "sk_dot";
  MapShape map;
  Branches x;
  const void* dy = nullptr;
  const void* logits = nullptr;  // (N, M, C) acc, of the forward
  void* dlogits = nullptr;       // (N, M, C) acc

  template <class Options>
  void set(Options& options) {
    x = branches_of(options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t logits = p.map.acc_bytes(p.x.count * p.map.planes());
    v.inputs("x", p.x, p.map);
    v.input("dy", p.dy, p.map.bytes());
    v.input("logits", p.logits, logits);
    v.output("dlogits", p.dlogits, logits);
  }
};

struct SkGradient {
  static constexpr const char* kName = "sk_gradient";
  MapShape map;
  const void* dy = nullptr;
  const void* logits = nullptr;   // (N, M, C) acc, of the forward
  const void* dpooled = nullptr;  // (N, C) acc or null: zero
  MutableBranches dx;

  template <class Options>
  void set(Options& options) {
    dx.count = branches_of(options).count;
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    v.input("dy", p.dy, p.map.bytes());
    v.input("logits", p.logits, p.map.acc_bytes(p.dx.count * p.map.planes()));
    v.input("dpooled", p.dpooled, p.map.acc_bytes(p.map.planes()));
    v.outputs("dx", p.dx, p.map);
  }
};

// ---- with its usual network, in one call: the four operators above and what lies between them.
// There the calls between the passes cost as much as the passes.

// A layer's matrix and bias, of one type: the maps', or float32 beside 16-bit maps.
struct SkLayer {
  DType dtype = DType::f32;
  const void* w = nullptr;
  const void* b = nullptr;  // may be null
};

// logits = w_select act(norm(w_reduce p + b_reduce)) + b_select; act: ReLU or nothing. Arrays are
// dense; those that may be absent are null. The norm's have types of their own, as layers have.
struct SkNetwork {
  enum class Norm { none, fixed, of_batch };  // by given statistics, or by those of the batch
  index_t d = 1;                              // hidden units
  SkLayer reduce, select;                     // (d, C) and (M*C, d)
  Norm norm = Norm::none;
  double eps = 0;
  bool relu = true;
  DType affine_dtype = DType::f32, statistics_dtype = DType::f32;
  const void *weight = nullptr, *bias = nullptr;    // (d), of the norm
  const void *mean = nullptr, *variance = nullptr;  // (d), biased: null where they are to be found
  bool normalises() const { return norm != Norm::none; }
  index_t bytes(const MapShape& map, int m) const {
    return map.c * d * (size_of(reduce.dtype) + m * size_of(select.dtype));
  }

  // By name, with numbers of the map's type. Options: engine/options.h.
  template <class Options>
  void set(const MapShape& map, Options& options) {
    d = options.integer("hidden", 0);
    options.require(d >= 0, "hidden must not be negative; 0: without the network");
    const auto kind = options.word("norm", "none");
    options.require(kind == "none" || kind == "fixed" || kind == "batch",
                    "norm must be none, fixed or batch; got " + kind);
    norm = kind == "none" ? Norm::none : kind == "fixed" ? Norm::fixed : Norm::of_batch;
    eps = options.number("eps", eps);
    reduce.dtype = select.dtype = affine_dtype = statistics_dtype = map.dtype;
  }

  // Without the norm's statistics.
  template <class Network, class V>
  static void arrays(Network& p, const MapShape& map, int m, V&& v) {
    v.input("w_reduce", p.reduce.w, p.d * map.c * size_of(p.reduce.dtype));
    v.input("b_reduce", p.reduce.b, p.d * size_of(p.reduce.dtype));
    v.input("w_select", p.select.w, m * map.c * p.d * size_of(p.select.dtype));
    v.input("b_select", p.select.b, m * map.c * size_of(p.select.dtype));
    v.input("weight", p.weight, p.d * size_of(p.affine_dtype));
    v.input("bias", p.bias, p.d * size_of(p.affine_dtype));
  }
};

// Batch norms by running statistics in front of the branches: the prologue that they make is
// computed here, and its activation is that of the branches. One of M*C channels, or M of C; each
// of one type.
struct SkBranchNorms {
  struct One {
    DType dtype = DType::f32;
    const void *weight = nullptr, *bias = nullptr, *mean = nullptr, *variance = nullptr;
  };
  int count = 0;  // none, 1 or M
  double eps = 0;
  One at[kMaxBranches];
};

struct SkForward {
  static constexpr const char* kName = "sk_forward";
  MapShape map;
  Branches x;
  SkBranchNorms norms;
  SkNetwork network;
  // Of the batch, where the norm takes them, and those that follow them.
  void *mean = nullptr, *variance = nullptr;  // (d) acc, biased
  RunningStatistics running;
  void* pooled = nullptr;     // (N, C) acc
  void* hidden = nullptr;     // (N, d) acc, before the norm, where there is one
  void* activated = nullptr;  // (N, d) acc
  void* logits = nullptr;     // (N, M, C) acc
  void* y = nullptr;

  template <class Options>
  void set(Options& options) {
    x = branches_of(options);
    network.set(map, options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const index_t d = p.network.d, rows = p.x.count * p.map.c;
    const index_t numbers = p.map.acc_bytes(d), units = p.map.acc_bytes(p.map.n * d);
    const index_t statistics = d * size_of(p.network.statistics_dtype);
    v.inputs("x", p.x, p.map);
    v.input("prologue", p.x.prologue, p.map.acc_bytes(2 * rows));
    for (int q = 0; q < p.norms.count; ++q) {
      auto& norm = p.norms.at[q];
      for (auto* t : {&norm.weight, &norm.bias, &norm.mean, &norm.variance})
        v.input("prologue", *t, rows / p.norms.count * size_of(norm.dtype));
    }
    SkNetwork::arrays(p.network, p.map, p.x.count, v);
    v.input("mean", p.network.mean, statistics);
    v.input("var", p.network.variance, statistics);
    v.output("batch_mean", p.mean, numbers);
    v.output("batch_var", p.variance, numbers);
    RunningStatistics::arrays(p.running, d, v);
    v.output("pooled", p.pooled, p.map.acc_bytes(p.map.planes()));
    v.output("hidden", p.hidden, units);
    v.output("activated", p.activated, units);
    v.output("logits", p.logits, p.map.acc_bytes(p.map.n * rows));
    v.output("y", p.y, p.map.bytes());
  }
};

struct SkBackward {
  static constexpr const char* kName = "sk_backward";
  MapShape map;
  Branches x;
  SkNetwork network;  // with its statistics, whichever they are
  const void* dy = nullptr;
  const void* dlogits = nullptr;  // (N, M, C) acc or null: beside what comes from y
  const void *pooled = nullptr, *hidden = nullptr, *activated = nullptr, *logits = nullptr;
  // Null where they are not wanted: the branches' together, the others one by one. Of the types of
  // what they are the gradients of.
  MutableBranches dx;
  void *dw_reduce = nullptr, *db_reduce = nullptr, *dweight = nullptr, *dbias = nullptr;
  void *dw_select = nullptr, *db_select = nullptr;

  template <class Options>
  void set(Options& options) {
    x.count = dx.count = branches_of(options).count;
    network.set(map, options);
  }
  template <class Call, class V>
  static void arrays(Call& p, V&& v) {
    const SkNetwork& n = p.network;
    const index_t c = p.map.c, rows = p.x.count * c;
    const index_t planes = p.map.planes(), units = p.map.acc_bytes(p.map.n * n.d);
    const bool of_batch = n.norm == SkNetwork::Norm::of_batch;
    v.inputs("x", p.x, p.map);
    SkNetwork::arrays(p.network, p.map, p.x.count, v);
    v.input(of_batch ? "batch_mean" : "mean", p.network.mean, n.d * size_of(n.statistics_dtype));
    v.input(of_batch ? "batch_var" : "var", p.network.variance, n.d * size_of(n.statistics_dtype));
    v.input("dy", p.dy, p.map.bytes());
    v.input("dlogits", p.dlogits, p.map.acc_bytes(p.x.count * planes));
    v.input("pooled", p.pooled, p.map.acc_bytes(planes));
    v.input("hidden", p.hidden, units);
    v.input("activated", p.activated, units);
    v.input("logits", p.logits, p.map.acc_bytes(p.x.count * planes));
    v.outputs("dx", p.dx, p.map);
    v.output("dw_reduce", p.dw_reduce, n.d * c * size_of(n.reduce.dtype));
    v.output("db_reduce", p.db_reduce, n.d * size_of(n.reduce.dtype));
    v.output("dweight", p.dweight, n.d * size_of(n.affine_dtype));
    v.output("dbias", p.dbias, n.d * size_of(n.affine_dtype));
    v.output("dw_select", p.dw_select, rows * n.d * size_of(n.select.dtype));
    v.output("db_select", p.db_select, rows * size_of(n.select.dtype));
  }
};

CHATTN_CALL(SkSqueeze);
CHATTN_CALL(SkSelect);
CHATTN_CALL(SkDot);
CHATTN_CALL(SkGradient);
CHATTN_CALL(SkForward);
CHATTN_CALL(SkBackward);

}  // namespace chattn
