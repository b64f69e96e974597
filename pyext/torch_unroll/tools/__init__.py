"""Commands of `python -m torch_unroll` that examine this machine or prepare it."""
