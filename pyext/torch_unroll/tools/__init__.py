"""Commands of `python -m torch_unroll` that look at this machine or prepare it."""
