"""Runs the CUDA kernels of csrc/ on the CPU: the runtime, and what builds and steers it."""
