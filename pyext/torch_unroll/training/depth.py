"""`python -m torch_unroll depth`: does a deeper network learn? Compares plain and residual networks on handwritten digits.

In He, Zhang, Ren & Sun 2015, figure 6, plain networks learn worse the deeper they are, and residual networks do not. A few epochs
on scikit-learn's 8×8 digits are enough for a plain network of 56 layers to fall far behind.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from torch_unroll.models import cifar_resnet
from torch_unroll.training.digits import Digits, load

NETWORKS = {"plain-20": (20, False), "residual-20": (20, True), "plain-56": (56, False), "residual-56": (56, True)}
_BATCH = 64


def losses(name: str, digits: Digits, epochs: int, device: str | torch.device = "cpu", seed: int = 0) -> Iterator[float]:
    """Trains a network of `NETWORKS` by SGD with rate 0.1 and momentum 0.9, as in the paper; yields the cross-entropy of each
    step."""
    depth, residual = NETWORKS[name]
    torch.manual_seed(seed)
    network = cifar_resnet(depth, residual=residual, channels=1).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = digits.images.unsqueeze(1).to(device), digits.digits.to(device)
    for _ in range(epochs):
        # The last batch is incomplete and is dropped, so that every step averages over the same number of digits.
        for rows in torch.randperm(len(images)).to(device).split(_BATCH)[:-1]:
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield float(loss.detach())


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Draws the curves, smoothed over the last 10 steps, into an image file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, curve in curves.items():
        smooth = [sum(curve[max(0, i - 9) : i + 1]) / len(curve[max(0, i - 9) : i + 1]) for i in range(len(curve))]
        axes.plot(smooth, label=name, linestyle="--" if name.startswith("plain") else "-")
    axes.set(xlabel="step", ylabel="training loss", title="Deeper is harder, unless shortcuts carry the identity", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> int:
    """Runs the command: trains the networks, prints a table and draws the plot."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m torch_unroll depth", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["residual-20", "plain-56"], help="which to train")
    parser.add_argument(
        "--epochs", type=int, default=3, help="passes over the 1,198 digits (default: 3, half a minute on two cores)"
    )
    parser.add_argument("--plot", type=Path, default=Path("out/depth.png"), help="where the plot goes (default: out/depth.png)")
    options = parser.parse_args(arguments)
    digits, device = load(), "cuda" if torch.cuda.is_available() else "cpu"
    steps = options.epochs * (len(digits.images) // _BATCH)
    curves = {name: list(tqdm(losses(name, digits, options.epochs, device), name, steps)) for name in options.networks}
    for name, curve in curves.items():
        last = curve[-steps // options.epochs :]
        print(f"{name:<12} loss over the last epoch {sum(last) / len(last):.3f}")
    plot(curves, options.plot)
    print(f"plot: {options.plot}")
    return 0
