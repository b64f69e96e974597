"""The search that fills the ops' tables of measurements, kernels/cuda/<op>/choices.json.

A table holds, for each problem of the suites, the variant, tile and splits that take the least time on a GPU.
"""
