"""`python -m torch_unroll search`: searches for a small network that classifies the digits, and shows the candidates.

python -m torch_unroll search --strategy hyperband --trials 30 --store out/search.log    # a second run continues
python -m torch_unroll search --strategy darts
python -m torch_unroll search --strategy ntk --trials 20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from torch_unroll.search import darts, ntk, study
from torch_unroll.search.space import CHOICES, Candidate, build
from torch_unroll.training.digits import Digits, load


def _plot(points: Sequence[tuple[float, float]], labels: tuple[str, str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([x for x, _ in points], [y for _, y in points], "o")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def _with_optuna(options: argparse.Namespace, digits: Digits) -> None:
    from tqdm import tqdm

    trials = study.open_study(options.strategy, options.store, options.epochs)
    done = sum(trial.state.is_finished() for trial in trials.trials)
    with tqdm(total=options.trials, initial=min(done, options.trials), desc=options.strategy) as bar:
        study.run(trials, options.strategy, digits, options.trials, options.epochs, bar.update)
    print(study.table(trials))
    _plot(
        [(trial.number, trial.value) for trial in trials.trials if trial.value is not None], ("trial", "accuracy"), options.plot
    )


def _with_darts(options: argparse.Namespace, digits: Digits) -> None:
    from tqdm import tqdm

    epochs = list(tqdm(darts.search(digits, options.epochs), "darts", options.epochs))
    losses = [loss for loss, _ in epochs]
    for node, edges in enumerate(epochs[-1][1].genotype(), 1):
        print(f"node {node}: " + " + ".join(f"{name}(state {source})" for source, name in edges))
    _plot(list(enumerate(losses, 1)), ("epoch", "loss on the architecture's half"), options.plot)


def _with_ntk(options: argparse.Namespace, digits: Digits) -> None:
    from tqdm import tqdm

    names = [name for name in CHOICES if name != "rate"]
    grid = [Candidate(**dict(zip(names, values, strict=True))) for values in product(*(CHOICES[name] for name in names))]
    torch.manual_seed(0)
    scored = []
    for index in tqdm(torch.randperm(len(grid))[: options.trials].tolist(), "ntk"):
        scored.append((ntk.condition_number(build(grid[index]), digits.images[:16].unsqueeze(1)), grid[index]))
    scored.sort(key=lambda pair: pair[0])
    for score, candidate in scored[:10]:
        print(f"{score:12.3g}  " + ", ".join(f"{name} {getattr(candidate, name)}" for name in names))
    _plot([(rank, score) for rank, (score, _) in enumerate(scored)], ("rank", "condition number of the kernel"), options.plot)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns 2 after a one-line message if something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_unroll search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategy", choices=(*study.STRATEGIES, "darts", "ntk"), default="hyperband", help="default: hyperband")
    parser.add_argument("--trials", type=int, default=20, help="networks to try, those in the store included (default: 20)")
    parser.add_argument("--epochs", type=int, default=6, help="the most a network is trained (default: 6)")
    parser.add_argument("--store", type=Path, help="a file that keeps the trials; a search that was ended goes on from there")
    parser.add_argument("--plot", type=Path, default=Path("out/search.png"), help="where the plot goes (default: out/search.png)")
    options = parser.parse_args(arguments)
    if min(options.trials, options.epochs) < 1:
        parser.error("expected at least one trial and one epoch")
    try:
        search = {"darts": _with_darts, "ntk": _with_ntk}.get(options.strategy, _with_optuna)
        search(options, load())
    except (ImportError, OSError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    return 0
