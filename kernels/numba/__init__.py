"""The kernels in Python: twins of kernels/cuda for Numba, with the same letters. They are meant to be read first.

The docstrings say what a thread and a block own. Where an op has several variants in C++, its twins are the simplest of them,
named after them; a pass that is a template argument in C++ is part of the name here.
"""
