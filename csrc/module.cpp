// chattn_cuda._C: what was built. Tensors go through the operators, never through this module.
// It keeps to Python's limited API: one binary serves every Python from 3.10 on.
#include <Python.h>

#include <map>
#include <memory>
#include <string>

#include "engine/cpu/kernels.h"
#include "engine/cuda/plans.h"

namespace {

struct Release {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Release>;

// Python has its error; the caller only leaves.
struct PythonError {};

PyObject* checked(PyObject* object) {
  if (object == nullptr) throw PythonError{};
  return object;
}

// Runs a function of this module; what it throws becomes Python's error.
template <class Function>
PyObject* guarded(Function&& function) noexcept {
  try {
    return function();
  } catch (const PythonError&) {
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

chattn::DType dtype_of(const std::string& name) {
  if (name == "float32") return chattn::DType::f32;
  if (name == "float16") return chattn::DType::f16;
  if (name == "bfloat16") return chattn::DType::bf16;
  if (name == "float64") return chattn::DType::f64;
  throw std::invalid_argument("dtype must be float32, float16, bfloat16 or float64; got " + name);
}

std::string text_of(PyObject* object) {
  const Owned bytes(checked(PyUnicode_AsUTF8String(object)));
  return PyBytes_AsString(bytes.get());
}

// Numbers, flags and words, as the options of a call are told.
std::map<std::string, std::string> texts_of(PyObject* options) {
  std::map<std::string, std::string> texts;
  PyObject *name, *value;  // borrowed
  for (Py_ssize_t at = 0; options != nullptr && PyDict_Next(options, &at, &name, &value);) {
    const bool number = PyLong_Check(value);
    const long long integer = number ? PyLong_AsLongLong(value) : 0;
    if (integer == -1 && PyErr_Occurred() != nullptr) throw PythonError{};
    texts[text_of(name)] = number ? std::to_string(integer) : text_of(value);
  }
  return texts;
}

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:s,s:s}", "version", CHATTN_VERSION, "torch",
                       CHATTN_TORCH_VERSION, "compiler", __VERSION__, "cpu_isas", CHATTN_CPU_ISAS,
                       "cuda", CHATTN_CUDA_VERSION, "cuda_archs", CHATTN_CUDA_ARCHS, "cuda_note",
                       CHATTN_CUDA_NOTE);
}

PyObject* cpu_isa(PyObject*, PyObject*) {
  return guarded([] { return PyUnicode_FromString(chattn::cpu::kernels().isa); });
}

PyObject* plan(PyObject*, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"block",         "n",        "c",       "hw",   "dtype",
                                "channels_last", "backward", "options", nullptr};
  const char *block, *dtype = "float32";
  long long n, c, hw;
  int channels_last = 0, backward = 0;
  PyObject* given = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sLLL|sppO!", const_cast<char**>(names), &block,
                                   &n, &c, &hw, &dtype, &channels_last, &backward, &PyDict_Type,
                                   &given))
    return nullptr;
  return guarded([&] {
    const auto& plans = chattn::cuda::plans();
    const auto found = plans.find(block);
    chattn::Options::require(found != plans.end(), std::string("no block ") + block);
    chattn::Options::require(n > 0 && c > 0 && hw > 0, "n, c and hw must be positive");
    chattn::Options options(texts_of(given));
    const auto launches =
        found->second({dtype_of(dtype), channels_last != 0, n, c, hw}, options, backward != 0);
    options.finish(block);
    Owned list(checked(PyList_New(0)));
    for (const auto& launch : launches) {
      const Owned told(checked(Py_BuildValue(
          "{s:s,s:s,s:L,s:i,s:i,s:L,s:L}", "kernel", launch.kernel, "work", launch.work, "blocks",
          static_cast<long long>(launch.blocks), "threads", chattn::cuda::kThreads, "vector_bytes",
          launch.vector_bytes, "map_reads", static_cast<long long>(launch.map_reads), "map_writes",
          static_cast<long long>(launch.map_writes))));
      if (PyList_Append(list.get(), told.get()) != 0) throw PythonError{};
    }
    return list.release();
  });
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "What this module was built from: versions, CUDA architectures, why CUDA is or is not in it."},
    {"cpu_isa", cpu_isa, METH_NOARGS,
     "Instruction set of the CPU kernels in use: baseline, avx2 or avx512."},
    {"plan", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(plan)),
     METH_VARARGS | METH_KEYWORDS,
     "plan(block, n, c, hw, dtype='float32', channels_last=False, backward=False, options={})\n\n"
     "CUDA launches of a block's call: kernel, blocks, bytes of the map moved. The options are "
     "those that the block's op.cpp reads, such as rd, k or branches."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "chattn_cuda._C",
                          "Native kernels of chattn_cuda; the operators are torch.ops.chattn_cuda.",
                          0,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
