// What control.py calls through ctypes.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda_host/hostcuda.h"

namespace {

// Set together with the profile, unless asked for: a common board of that architecture.
int multiprocessors_of(int sm) {
  switch (sm) {
    case 75:
      return 40;  // T4
    case 80:
      return 108;  // A100
    case 86:
      return 72;  // A10
    case 89:
      return 142;  // L40S
    case 90:
      return 132;  // H100
    case 100:
      return 148;  // B200
    case 120:
      return 170;  // RTX 5090
    default:
      return 0;
  }
}

bool set_order(hostcuda::Options& o, const std::string& value) {
  using hostcuda::Order;
  if (value == "depth")
    o.order = Order::depth;
  else if (value == "reverse")
    o.order = Order::reverse;
  else if (value == "random")
    o.order = Order::random;
  else if (value == "prio")
    o.order = Order::prio;
  else
    return false;
  return true;
}

}  // namespace

extern "C" {

// 0, or -1 for an unknown name or value.
__attribute__((visibility("default"))) int hostcuda_set_option(const char* name,
                                                               const char* value) {
  hostcuda::Options& o = hostcuda::options();
  const std::string key = name;
  if (key == "order") return set_order(o, value) ? 0 : -1;
  char* end = nullptr;
  const double number = std::strtod(value, &end);
  if (end == value || *end != '\0') return -1;
  const bool on = number != 0;
  const int integer = static_cast<int>(number);
  if (key == "seed") {
    o.seed = static_cast<std::uint64_t>(number);
  } else if (key == "preempt") {
    o.preempt = number;
  } else if (key == "poison") {
    o.poison = on;
  } else if (key == "bounds") {
    o.bounds = on;
  } else if (key == "uninitialized") {
    o.uninitialized = on;
  } else if (key == "races") {
    o.races = on;
  } else if (key == "counters") {
    o.counters = on;
  } else if (key == "execute") {
    o.execute = on;
  } else if (key == "workers") {
    o.workers = integer;
  } else if (key == "delay") {
    o.delay = integer;
  } else if (key == "sm") {
    if (multiprocessors_of(integer) == 0) return -1;
    o.sm = integer;
    o.multiprocessors = multiprocessors_of(integer);
  } else if (key == "multiprocessors") {
    o.multiprocessors = integer;
  } else if (key == "stack_kib") {
    o.stack_kib = integer;
  } else {
    return -1;
  }
  return 0;
}

__attribute__((visibility("default"))) void hostcuda_reset_options() {
  hostcuda::options() = hostcuda::Options{};
}

// Writes at most `size` bytes, with a terminating zero; returns the bytes that it takes.
__attribute__((visibility("default"))) std::size_t hostcuda_counters_json(char* out,
                                                                          std::size_t size) {
  const std::string text = hostcuda::report_json();
  if (size > 0) {
    const std::size_t n = std::min(size - 1, text.size());
    std::memcpy(out, text.data(), n);
    out[n] = '\0';
  }
  return text.size() + 1;
}

__attribute__((visibility("default"))) void hostcuda_reset_counters() { hostcuda::reset_report(); }
}
