"""Asks which engine and which kernels serve a call, and why the others do not.

`tu.explain` makes the call, and runs its backward pass if an input requires a gradient.
Prints three explanations: a convolution with its backward pass, a recurrence, and a call that goes to torch's own operator.
Needs nothing: without a GPU, engine `cuda` runs on the emulator if `make` has built it, else engine `torch` serves.
"""

import torch

import torch_unroll as tu


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = next(name for name, reason in tu.available_engines(device).reasons.items() if reason is None)

    x = torch.randn(2, 16, 8, 8, device=device, dtype=torch.bfloat16)
    weight = torch.randn(32, 16, 3, 3, device=device, dtype=torch.bfloat16, requires_grad=True)
    print(tu.explain("conv2d", x, weight, padding=1, engine=engine), end="\n\n")

    rnn = tu.nn.RNN(16, 32).to(device)
    sequence = torch.randn(5, 4, 16, device=device)
    weights = [parameter.detach() for parameter in rnn.parameters()]
    print(tu.explain("rnn", sequence, None, weights, engine=engine), end="\n\n")

    print(tu.explain("conv2d", torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)))  # CPU tensors, and no engine is named


if __name__ == "__main__":
    main()
