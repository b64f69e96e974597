"""The operators `torch_unroll::*`, and how autograd, vmap, torch.compile, autocast, FLOP counters and DTensor treat them."""
