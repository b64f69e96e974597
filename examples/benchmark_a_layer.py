"""Times one layer on torch_unroll and on torch, forward and backward.

`torch.utils.benchmark` warms up, waits for the GPU and repeats the call until it has enough samples. A plain loop around
`time.time()` neither warms up nor waits. `python -m benchmarks run` measures more carefully, with cold caches and CUDA graphs.
Prints the median time of each layer and, on the CPU, a warning that the times say nothing about a GPU.
Needs nothing: without a GPU, engine `torch` computes.
"""

import torch
from torch.utils.benchmark import Timer

import torch_unroll as tu


def median_microseconds(layer: torch.nn.Module, x: torch.Tensor, seconds: float) -> float:
    """Returns the median time of a forward pass followed by a backward pass."""
    timer = Timer("layer(x).sum().backward()", globals={"layer": layer, "x": x}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median * 1e6


def main() -> None:
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    N, C, H = (32, 64, 56) if on_gpu else (2, 8, 14)
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    x = torch.randn(N, C, H, H, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    theirs = torch.nn.Conv2d(C, C, 3, padding=1, device=device, dtype=dtype)
    ours = tu.nn.Conv2d(C, C, 3, padding=1, device=device, dtype=dtype, engine=None if on_gpu else "torch")
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))  # a wrong result is not worth timing

    seconds = 1.0 if on_gpu else 0.2
    print(f"Conv2d({C}, {C}, 3, padding=1) on {tuple(x.shape)}, forward and backward")
    for name, layer in (("torch", theirs), ("torch_unroll", ours)):
        print(f"{name:>12}: {median_microseconds(layer, x, seconds):.0f} µs")
    if not on_gpu:
        print("on the CPU: these times say nothing about a GPU")


if __name__ == "__main__":
    main()
