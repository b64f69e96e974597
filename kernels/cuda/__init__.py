"""The CUDA C++ kernels: each op's folder holds its device code, and a `variants.py` with its table and launch plans."""
