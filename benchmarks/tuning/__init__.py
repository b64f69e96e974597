"""The search that fills the ops' tables of measurements, kernels/cuda/<op>/choices.json.

A table holds, for each GPU and each problem that was searched on it, the fastest variant, tile and splits, and their time.
"""
