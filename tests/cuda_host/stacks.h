// Stacks outlive launches: mapping and first touch cost more than running a thread on one.
#pragma once
#include <cstddef>
#include <vector>

namespace hostcuda {

// Adds some stacks to the worker's own.
void take_stacks(std::vector<char*>& to, std::size_t bytes);
void give_back_stacks(std::vector<char*>& from, std::size_t bytes);
// Between two threads on one stack.
void recycle_stack(char* stack, std::size_t bytes);

}  // namespace hostcuda
