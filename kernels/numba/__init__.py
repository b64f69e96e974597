"""The kernels in Python: twins of kernels/cuda for Numba, with the same letters for extents. They are meant to be read first.

The docstrings say what a thread and a block own. If an op has several variants in C++, only the simplest have twins here,
under the names of the C++ kernels, but without the "simt" of conv2d. If the pass is a template argument in C++, there are two
twins, and the backward one has "_backward" in its name.
"""
