// Runs one kernel of the zoo: from Python through zoo_run(), or as a program,
//   zoo KERNEL[,KERNEL...] [option=value...]
// which prints what came of it and exits with 0 (right result), 1 (error) or 2 (wrong result).
#include "cuda_host/zoo/zoo.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "cuda_host/hostcuda.h"

extern "C" int hostcuda_set_option(const char* name, const char* value);

namespace chattn::zoo {
namespace {

enum Outcome { kRight = 0, kError = 1, kWrong = 2 };

using Memory = std::unique_ptr<float[], void (*)(void*)>;

// As cudaMalloc aligns it.
Memory aligned_memory(std::size_t elements) {
  constexpr std::size_t kAlign = 256;
  const std::size_t bytes = (elements * sizeof(float) + kAlign - 1) / kAlign * kAlign;
  return {static_cast<float*>(std::aligned_alloc(kAlign, bytes)), std::free};
}

Outcome run(const Case& c, std::string& text) {
  // Of different sizes, or an allocator without headers may put one right behind the other.
  const Memory in = aligned_memory(kElements), out = aligned_memory(kElements + 100);
  for (int i = 0; i < kElements; ++i) in[i] = static_cast<float>(i);
  hostcuda::BufferScope buffers;
  buffers.input(in.get(), sizeof(float) * kElements, "in");
  buffers.output(out.get(), sizeof(float) * kElements, "out");
  try {
    const Status status = launch(c.name, c.kernel, c.config, in.get(), out.get());
    if (!status.ok) {
      text = status.text;
      return kError;
    }
  } catch (const hostcuda::LaunchError& e) {
    text = e.what();
    return kError;
  }
  if (!c.expected) {
    // What the broken kernels compute is up to the order of threads; a sum tells orders apart.
    double sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += out[i];
    text = "sum " + std::to_string(sum);
    return kRight;
  }
  const dim3 &g = c.config.grid, &b = c.config.block;
  const unsigned n = g.x * g.y * g.z * b.x * b.y * b.z;
  for (unsigned i = 0; i < n; ++i) {
    const float wanted = c.expected(static_cast<int>(i));
    if (out[i] == wanted) continue;
    text = "out[" + std::to_string(i) + "] is " + std::to_string(out[i]) + ", expected " +
           std::to_string(wanted);
    return kWrong;
  }
  return kRight;
}

Outcome run(const char* name, std::string& text) {
  for (const Case& c : cases())
    if (std::strcmp(c.name, name) == 0) return run(c, text);
  text = std::string("no kernel ") + name;
  return kError;
}

void copy(const std::string& text, char* out, std::size_t size) {
  const std::size_t n = std::min(size - 1, text.size());
  std::memcpy(out, text.data(), n);
  out[n] = '\0';
}

}  // namespace
}  // namespace chattn::zoo

extern "C" int zoo_run(const char* name, char* out, std::size_t size) {
  std::string text;
  const int outcome = chattn::zoo::run(name, text);
  chattn::zoo::copy(text, out, size);
  return outcome;
}

// Names of the correct kernels, or of all, separated by spaces.
extern "C" void zoo_names(int only_correct, char* out, std::size_t size) {
  std::string text;
  for (const auto& c : chattn::zoo::cases())
    if (c.expected || !only_correct) text += std::string(c.name) + ' ';
  chattn::zoo::copy(text, out, size);
}

// sm, multiprocessors, shared memory per block
extern "C" void zoo_device(int* out) {
  const chattn::DeviceInfo d = chattn::device_info();
  out[0] = d.sm;
  out[1] = d.multiprocessors;
  out[2] = d.shared_per_block;
}

#if defined(CHATTN_ZOO_MAIN)
int main(int argc, char** argv) {
  std::string text;
  int outcome = argc < 2;
  for (int i = 2; i < argc; ++i) {
    char* value = std::strchr(argv[i], '=');
    if (!value) return 3;
    *value = '\0';
    if (hostcuda_set_option(argv[i], value + 1) != 0) return 3;
  }
  // Several kernels, separated by commas.
  for (char* name = argc < 2 ? nullptr : std::strtok(argv[1], ","); name;
       name = std::strtok(nullptr, ",")) {
    text.clear();
    outcome = std::max<int>(outcome, chattn::zoo::run(name, text));
    std::printf("%s: %s\n", name, text.c_str());
  }
  return outcome;
}
#endif
