"""Convolution: device code (`.cuh`), its parameters (`problem.py`), its rows of the kernel table and plans (`variants.py`)."""
