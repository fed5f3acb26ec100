// chattn_cuda._C: what was built. Tensors go through the operators, never through this module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "blocks/eca/plan.h"
#include "blocks/se/plan.h"
#include "blocks/sk/plan.h"
#include "engine/cpu/kernels.h"

namespace py = pybind11;

namespace {

chattn::DType dtype_of(const std::string& name) {
  if (name == "float32") return chattn::DType::f32;
  if (name == "float16") return chattn::DType::f16;
  if (name == "bfloat16") return chattn::DType::bf16;
  if (name == "float64") return chattn::DType::f64;
  throw py::value_error("dtype must be float32, float16, bfloat16 or float64; got " + name);
}

py::list as_list(const std::vector<chattn::cuda::LaunchInfo>& plan) {
  py::list launches;
  for (const auto& launch : plan) {
    py::dict d;
    d["kernel"] = launch.kernel;
    d["work"] = launch.work;
    d["blocks"] = launch.blocks;
    d["threads"] = chattn::cuda::kThreads;
    d["vector_bytes"] = launch.vector_bytes;
    d["map_reads"] = launch.map_reads;
    d["map_writes"] = launch.map_writes;
    launches.append(d);
  }
  return launches;
}

py::list plan_se(std::int64_t n, std::int64_t c, std::int64_t hw, std::int64_t rd,
                 const std::string& dtype, bool channels_last, bool backward) {
  if (n < 1 || c < 1 || hw < 1) throw py::value_error("n, c and hw must be positive");
  if (rd < 0) throw py::value_error("rd must not be negative; 0: the gate has one layer");
  const chattn::MapShape map{dtype_of(dtype), channels_last, n, c, hw};
  chattn::MlpGate gate;
  gate.weight_dtype = map.dtype;
  gate.direct = rd == 0;
  gate.rd = gate.direct ? c : rd;
  return as_list(chattn::cuda::describe(chattn::cuda::plan_se(map, gate), map, gate, backward));
}

py::list plan_eca(std::int64_t n, std::int64_t c, std::int64_t hw, std::int64_t k,
                  const std::string& dtype, bool channels_last, bool per_channel, bool circular,
                  bool backward, bool clusters) {
  if (n < 1 || c < 1 || hw < 1) throw py::value_error("n, c and hw must be positive");
  if (k < 1 || k % 2 == 0) throw py::value_error("k must be positive and odd");
  const chattn::MapShape map{dtype_of(dtype), channels_last, n, c, hw};
  chattn::ConvGate gate;
  gate.weight_dtype = map.dtype;
  gate.taps = k;
  gate.per_channel = per_channel;
  gate.circular = circular;
  return as_list(
      chattn::cuda::describe(chattn::cuda::plan_eca(map, gate), map, gate, backward, clusters));
}

py::list plan_sk(std::int64_t n, std::int64_t c, std::int64_t hw, int branches,
                 const std::string& dtype, bool channels_last, bool backward, std::int64_t hidden,
                 const std::string& norm) {
  using Norm = chattn::SkNetwork::Norm;
  if (n < 1 || c < 1 || hw < 1) throw py::value_error("n, c and hw must be positive");
  if (branches < 1 || branches > chattn::kMaxBranches)
    throw py::value_error("there must be 1 to 4 branches");
  if (hidden < 0) throw py::value_error("hidden must not be negative; 0: without the network");
  if (norm != "none" && norm != "fixed" && norm != "batch")
    throw py::value_error("norm must be none, fixed or batch; got " + norm);
  const chattn::MapShape map{dtype_of(dtype), channels_last, n, c, hw};
  if (hidden == 0) return as_list(chattn::cuda::describe_sk(map, branches, backward));
  const Norm kind = norm == "none" ? Norm::none : norm == "fixed" ? Norm::fixed : Norm::of_batch;
  return as_list(chattn::cuda::describe_sk_block(map, branches, hidden, kind, backward));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of chattn_cuda; the operators are torch.ops.chattn_cuda.";

  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = CHATTN_VERSION;
        info["torch"] = CHATTN_TORCH_VERSION;
        info["compiler"] = __VERSION__;
        info["cpu_isas"] = CHATTN_CPU_ISAS;
        info["cuda"] = CHATTN_CUDA_VERSION;
        info["cuda_archs"] = CHATTN_CUDA_ARCHS;
        info["cuda_note"] = CHATTN_CUDA_NOTE;
        return info;
      },
      "What this module was built from: versions, CUDA architectures, why CUDA is or is not in "
      "it.");

  m.def(
      "cpu_isa", [] { return std::string(chattn::cpu::kernels().isa); },
      "Instruction set of the CPU kernels in use: baseline, avx2 or avx512.");

  m.def("plan_se", &plan_se, py::arg("n"), py::arg("c"), py::arg("hw"), py::arg("rd"),
        py::arg("dtype") = "float32", py::arg("channels_last") = false, py::arg("backward") = false,
        "CUDA launches of a squeeze-and-excitation call: kernel, blocks, bytes of the map moved. "
        "rd = 0: effective SE, with one layer.");

  m.def("plan_eca", &plan_eca, py::arg("n"), py::arg("c"), py::arg("hw"), py::arg("k"),
        py::arg("dtype") = "float32", py::arg("channels_last") = false,
        py::arg("per_channel") = false, py::arg("circular") = false, py::arg("backward") = false,
        py::arg("clusters") = true,
        "The same of an efficient-channel-attention call; clusters: whether the GPU has them.");

  m.def("plan_sk", &plan_sk, py::arg("n"), py::arg("c"), py::arg("hw"), py::arg("branches") = 2,
        py::arg("dtype") = "float32", py::arg("channels_last") = false, py::arg("backward") = false,
        py::arg("hidden") = 0, py::arg("norm") = "none",
        "The same of a selective kernel with so many hidden units, normalised or not; hidden = 0: "
        "without the network, which is then called between its operators.");
}
