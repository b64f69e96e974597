"""The kernels in Python: twins of kernels/cuda for Numba, with the same names and letters, written to be read first.

Each file says what a thread and a block own. Where its C++ namesake has a ladder of variants, the twin is the first rung.
"""
