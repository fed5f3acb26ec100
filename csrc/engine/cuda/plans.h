// The launches of every block, for chattn_cuda._C.plan: by name, as a block's op.cpp tells them.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/cuda/launch_info.h"
#include "engine/options.h"

namespace chattn::cuda {

using Describe = std::vector<LaunchInfo> (*)(const MapShape& map, Options& options, bool backward);

inline std::map<std::string, Describe>& plans() {
  static std::map<std::string, Describe> all;
  return all;
}

struct RegisteredPlan {
  RegisteredPlan(const char* block, Describe describe) { plans()[block] = describe; }
};

}  // namespace chattn::cuda
