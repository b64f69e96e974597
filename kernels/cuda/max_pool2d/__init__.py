"""Max pooling: `window.cuh` is one window, the other .cuh files are kernels, `variants.py` says which runs when."""
