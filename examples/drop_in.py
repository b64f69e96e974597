"""Replaces torch's convolution and max pooling in an existing model and compares the results.

Shows two ways: `tu.override()` for a block of code, and `tu.replace(model)` for good.
Prints what `replace` changed, and the largest difference from torch's own results for each way.
Needs nothing: without a GPU, engine `cuda` runs on the emulator if `make` has built it, else engine `torch` serves.
"""

import torch

import torch_unroll as tu


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).to(device)
    images = torch.randn(2, 3, 12, 12, device=device)
    expected = model(images)

    # Only on a CPU does an engine have to be named: by default, calls on CPU tensors go to torch's own operators, and calls on
    # CUDA tensors to the first engine that runs.
    engine = next(name for name, reason in tu.available_engines(device).reasons.items() if reason is None)
    with tu.use_engine(engine):
        with tu.override():
            within = model(images)
        print(tu.replace(model))
        replaced = model(images)

    for way, result in (("override", within), ("replace", replaced)):
        torch.testing.assert_close(result, expected)
        print(f"{way} on engine {engine}: differs from torch by at most {(result - expected).abs().max():.1e}")


if __name__ == "__main__":
    main()
