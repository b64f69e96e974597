"""The search that fills the ops' tables of measurements, kernels/cuda/<op>/choices.json.

A table holds, for each GPU and each problem of the suites, the variant, tile and splits that took the least time, and that time.
"""
