"""Triton kernels. Importing this package imports triton."""
