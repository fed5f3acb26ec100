// chattn_cuda._C: what was built. Tensors go through the operators, never through this module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <variant>

#include "engine/cpu/kernels.h"
#include "engine/cuda/plans.h"

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

using Option = std::variant<std::int64_t, std::string>;  // flags are integers

py::list plan(const std::string& block, std::int64_t n, std::int64_t c, std::int64_t hw,
              const std::string& dtype, bool channels_last, bool backward,
              const std::map<std::string, Option>& given) {
  const auto& plans = chattn::cuda::plans();
  const auto found = plans.find(block);
  if (found == plans.end()) throw py::value_error("no block " + block);
  if (n < 1 || c < 1 || hw < 1) throw py::value_error("n, c and hw must be positive");
  std::map<std::string, std::string> texts;
  for (const auto& [name, value] : given) {
    const auto* number = std::get_if<std::int64_t>(&value);
    texts[name] = number ? std::to_string(*number) : std::get<std::string>(value);
  }
  chattn::Options options(texts);
  const auto launches =
      found->second({dtype_of(dtype), channels_last, n, c, hw}, options, backward);
  options.finish(block);
  return as_list(launches);
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

  m.def("plan", &plan, py::arg("block"), py::arg("n"), py::arg("c"), py::arg("hw"),
        py::arg("dtype") = "float32", py::arg("channels_last") = false, py::arg("backward") = false,
        py::arg("options") = py::dict(),
        "CUDA launches of a block's call: kernel, blocks, bytes of the map moved. The options are "
        "those that the block's op.cpp reads, such as rd, k or branches.");
}
