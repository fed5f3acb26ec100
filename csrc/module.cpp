// chattn_cuda._C: what was built. Tensors go through the operators, never through this module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "engine/cpu/kernels.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of chattn_cuda; the operators are torch.ops.chattn_cuda.";

  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = CHATTN_VERSION;
        info["torch"] = CHATTN_TORCH_VERSION;
        info["compiler"] = __VERSION__;
        info["cuda"] = CHATTN_CUDA_VERSION;
        info["cuda_archs"] = CHATTN_CUDA_ARCHS;
        info["cuda_note"] = CHATTN_CUDA_NOTE;
        return info;
      },
      "What this module was built from: versions, CUDA architectures, why CUDA is or is not in it.");

  m.def(
      "cpu_isa", [] { return std::string(chattn::cpu::kernels().isa); },
      "Instruction set of the CPU kernels in use: baseline, avx2 or avx512.");
}
