"""Convolution: device code (`.cuh`) and the plans of its launches; README.md lists the variants and what to read first."""
