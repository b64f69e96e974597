"""`python -m torch_unroll train`: trains a network of `torch_unroll.models` on pictures in folders, and resumes interrupted runs.

    python -m torch_unroll train --model resnet18 --data pictures/ --checkpoint runs/resnet18.pt
    torchrun --nproc-per-node 2 -m torch_unroll train ...          # shares the same batches between processes

A run that was killed continues from its last checkpoint, which holds the states of the random generators. Since the batches
depend only on the settings, one process ends with bitwise the same result as without the interruption: on the CPU, and on a GPU
if all kernels of the network are deterministic. Several processes share every batch, and their gradients are averaged; three or
more may add them in another order after an interruption.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from torch_unroll import models
from torch_unroll.training import checkpoint
from torch_unroll.training.images import ImageFolder

#: Name -> the network, the (H, W) of its pictures, and their number of channels.
MODELS: dict[str, tuple[Callable[..., torch.nn.Module], tuple[int, int], int]] = {
    "lenet5": (models.lenet5, (32, 32), 1),
    "alexnet": (models.alexnet, (224, 224), 3),
    "googlenet": (models.googlenet, (224, 224), 3),
    "resnet18": (models.resnet18, (224, 224), 3),
    "resnet34": (models.resnet34, (224, 224), 3),
    "resnet50": (models.resnet50, (224, 224), 3),
    "residual-20": (partial(models.cifar_resnet, 20), (32, 32), 3),
    "residual-56": (partial(models.cifar_resnet, 56), (32, 32), 3),
    "plain-20": (partial(models.cifar_resnet, 20, False), (32, 32), 3),
    "plain-56": (partial(models.cifar_resnet, 56, False), (32, 32), 3),
    "densenet121": (models.densenet121, (224, 224), 3),
    "densenet-bc-100-12": (models.densenet_bc_100_12, (32, 32), 3),
}


@dataclass(frozen=True)
class Settings:
    """The settings of a run; `python -m torch_unroll train --help` explains them."""

    model: str
    data: Path
    checkpoint: Path
    epochs: int = 10
    batch: int = 64
    rate: float = 0.05
    save_every: int = 50
    seed: int = 0
    rank: int = 0
    processes: int = 1


class Run:
    """A training run: its network, its optimizer and its position in the data. It resumes from its checkpoint if there is one."""

    def __init__(self, settings: Settings):
        self.settings = settings
        if settings.batch % settings.processes:
            raise ValueError(
                f"batch: expected a multiple of the {settings.processes} processes that share it, got {settings.batch}"
            )
        make, size, channels = MODELS[settings.model]
        self.images = ImageFolder(settings.data, size, channels)
        if len(self.images) < settings.batch:
            raise ValueError(f"batch: expected at most the {len(self.images)} pictures there are, got {settings.batch}")
        self.device = (
            torch.device("cuda", settings.rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
        )
        torch.manual_seed(settings.seed)
        self.network = make(num_classes=len(self.images.classes)).to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), settings.rate, momentum=0.9, weight_decay=1e-4)
        torch.manual_seed(settings.seed + 1 + settings.rank)  # dropout differs between processes
        self.step = 0
        if settings.checkpoint.exists():
            self._resume()
        self.module: torch.nn.Module = self.network
        if settings.processes > 1:
            self.module = torch.nn.parallel.DistributedDataParallel(self.network)

    @property
    def steps_per_epoch(self) -> int:
        """The number of complete batches; an epoch leaves out the pictures that remain."""
        return len(self.images) // self.settings.batch

    def _identity(self) -> dict[str, object]:
        settings = self.settings
        return {
            "model": settings.model,
            "classes": self.images.classes,
            "batch": settings.batch,
            "seed": settings.seed,
            "processes": settings.processes,
        }

    def _resume(self) -> None:
        state = checkpoint.load(self.settings.checkpoint, self._identity())
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        checkpoint.set_random_state(state["random"][self.settings.rank], self.device)

    def save(self) -> None:
        """Writes the checkpoint. Every process has to call this, since the first one writes the random states of all."""
        random: list[torch.Tensor] = [checkpoint.random_state(self.device)]
        if self.settings.processes > 1:
            random = [torch.empty_like(random[0]) for _ in range(self.settings.processes)]
            dist.all_gather(random, checkpoint.random_state(self.device))
        if self.settings.rank == 0:
            state = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "random": random,
            }
            checkpoint.save(self.settings.checkpoint, {**self._identity(), **state})

    def rows(self, step: int) -> list[int]:
        """The indices of the pictures in this process's share of a step's batch. The batch depends only on the settings and the
        step."""
        settings = self.settings
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
        batch = order[place * settings.batch : (place + 1) * settings.batch]
        return batch[settings.rank :: settings.processes].tolist()

    def gradients(self) -> torch.Tensor:
        """Computes the gradients of the current step's batch into `.grad`; returns the loss of this process's share."""
        pictures, classes = self.images.load(self.rows(self.step))
        output = self.module(pictures.to(self.device))
        loss = F.cross_entropy(output[0] if isinstance(output, tuple) else output, classes.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def steps(self) -> Iterator[float]:
        """Trains to the end and yields the loss of each step; saves after every `save_every` steps and at the end."""
        last = self.settings.epochs * self.steps_per_epoch
        while self.step < last:
            loss = self.gradients()
            self.optimizer.step()
            self.step += 1
            if self.step % self.settings.save_every == 0 or self.step == last:
                self.save()
            yield float(loss)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_unroll train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, choices=MODELS, help="the network")
    parser.add_argument("--data", required=True, type=Path, help="a folder with a folder of pictures for each class")
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="where the run is kept; it resumes from there if it exists"
    )
    parser.add_argument("--epochs", type=int, default=10, help="passes over the pictures (default: 10)")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step, of all processes together (default: 64)")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate (default: 0.05)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and dropout (default: 0)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns 2 after a one-line message if the run is impossible."""
    from tqdm import tqdm

    options = _parser().parse_args(arguments)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if not 0 <= rank < processes:
            raise ValueError(f"RANK: expected a number below WORLD_SIZE {processes}, got {rank}")
        if processes > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        run = Run(Settings(**vars(options), rank=rank, processes=processes))
        total = run.settings.epochs * run.steps_per_epoch
        with tqdm(run.steps(), options.model, total, initial=run.step, disable=rank > 0) as bar:
            for loss in bar:
                bar.set_postfix(loss=f"{loss:.3f}")
    except (OSError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
