"""The operators `torch_unroll::*`: what autograd, vmap, torch.compile and autocast know of them."""
