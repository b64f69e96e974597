"""Writes a kernel of one's own, a direct convolution, and checks it against `tu.conv2d`.

The kernel is written in Python with Numba. On a GPU it is compiled; without one it runs in Numba's simulator, thread by thread,
where a debugger can step through it and `print` works. Each thread computes one output and sums in the order c, r, s.
CONTRIBUTING.md says how to turn a correct kernel into a variant that the library selects, in CUDA C++ or in Python.
Prints the largest error of the kernel's result and of that of `tu.conv2d` against float64.
Needs numba-cuda: `pip install 'torch-unroll[numba]'`.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # Numba reads it when it is imported

from numba import cuda

import torch_unroll as tu


@cuda.jit
def direct_conv2d_kernel(x, w, y):
    """x (N, C, H, W), w (K, C, R, S) -> y (N, K, P, Q); stride 1, no padding."""
    N, K, P, Q = y.shape
    C, R, S = w.shape[1:]
    i = cuda.grid(1)
    if i >= N * K * P * Q:
        return
    n, k, p, q = i // (K * P * Q), i // (P * Q) % K, i // Q % P, i % Q
    y[n, k, p, q] = 0
    for c in range(C):
        for r in range(R):
            for s in range(S):
                y[n, k, p, q] += x[n, c, p + r, q + s] * w[k, c, r, s]


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, w = torch.randn(1, 2, 6, 6, device=device), torch.randn(3, 2, 3, 3, device=device)
    y = torch.empty(1, 3, 4, 4, device=device)

    arrays = [tensor if tensor.is_cuda else tensor.numpy() for tensor in (x, w, y)]
    threads = 64
    direct_conv2d_kernel[-(-y.numel() // threads), threads](*arrays)

    exact = torch.nn.functional.conv2d(x.double(), w.double())
    for name, result in (("direct", y), ("tu.conv2d", tu.conv2d(x, w, engine="numba"))):
        print(f"{name}: error of at most {(result - exact).abs().max():.1e} in {result.numel()} outputs")


if __name__ == "__main__":
    main()
