"""Convolution: device code (`.cuh`) with its plans beside it; README.md says which variants there are and what to read first."""
