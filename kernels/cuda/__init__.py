"""The CUDA C++ kernels: each op's folder holds its device code, the modules that plan its launches, and its kernel
table, `variants.py`."""
