"""The models that are compared, each with torch's modules and with torch_unroll's, and their inputs for a batch of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_unroll as tu
from tests.differential import models

N = "N"


def shaped(*shapes: tuple[int | str, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """A function that returns normal random tensors of these shapes, with the same values in every call. An extent "N" is
    the batch size."""

    def draw(batch: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn([batch if extent == N else extent for extent in shape], generator=torch.Generator().manual_seed(seed))
            for seed, shape in enumerate(shapes)
        )

    return draw


def _with_lengths(draw: Callable[[int], tuple[Tensor, ...]]) -> Callable[[int], tuple[Tensor, ...]]:
    """A function that returns the tensors of `draw` and one more, the length of each sample: one or three steps."""
    return lambda batch: (*draw(batch), torch.arange(batch) * 2 % 4 + 1)


def _packed(batch: int) -> tuple[Tensor, ...]:
    """The data of a PackedSequence of three steps, whose first sample is the longest, and its batch_sizes."""
    sizes = torch.tensor([batch, batch, min(batch, 1)])
    return (*shaped((int(sizes.sum()), 3))(batch), sizes)


@dataclass(frozen=True)
class Subject:
    """A model under test. `make` builds it from a namespace: torch.nn, or torch_unroll.nn for the way "direct"."""

    name: str
    make: Callable[[Any], nn.Module]
    draw: Callable[[int], tuple[Tensor, ...]]
    #: For each input, the dimension whose extent depends on the batch size, or None.
    dims: tuple[int | None, ...] = (0,)
    ways: tuple[str, ...] = ("replace", "override", "direct")
    #: The public names of torch_unroll that this subject covers.
    covers: tuple[str, ...] = ()
    #: Whether the subject is a large network, to which the quick suite applies only `plain`, by one way and on engine `torch`.
    large: bool = False

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """New leaves; the floating-point ones require gradients."""
        return tuple(tensor.requires_grad_(tensor.is_floating_point()) for tensor in self.draw(batch))


_FUNCTION = ("override", "direct")
_TWIN = ("direct",)

SUBJECTS = (
    Subject("Conv2d-plain", lambda nn: nn.Conv2d(3, 4, 3, padding=1), shaped((N, 3, 5, 4)), covers=("nn.Conv2d",)),
    Subject("Conv2d-grouped", lambda nn: nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), shaped((N, 4, 5, 6))),
    Subject("Conv2d-same", lambda nn: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(2, 1)), shaped((N, 2, 5, 4))),
    Subject("Conv2d-reflect", lambda nn: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), shaped((N, 2, 4, 4))),
    Subject("Conv2d-unbatched", lambda nn: nn.Conv2d(2, 3, 3), shaped((2, 5, 4)), (None,)),
    Subject(
        "ConvTranspose2d-plain",
        lambda nn: nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, (1, 0), groups=2),
        shaped((N, 4, 3, 2)),
        covers=("nn.ConvTranspose2d",),
    ),
    Subject("Unfold-plain", lambda nn: nn.Unfold((2, 3), padding=1, stride=2), shaped((N, 2, 5, 4)), covers=("nn.Unfold",)),
    Subject("Fold-plain", lambda nn: nn.Fold((4, 4), 2), shaped((N, 12, 9)), covers=("nn.Fold",)),
    Subject("MaxPool2d-plain", lambda nn: nn.MaxPool2d(2), shaped((N, 3, 5, 4)), covers=("nn.MaxPool2d",)),
    Subject("MaxPool2d-indices", lambda nn: nn.MaxPool2d(3, 2, 1, return_indices=True), shaped((N, 2, 5, 4))),
    Subject("MaxPool2d-ceil", lambda nn: nn.MaxPool2d(2, ceil_mode=True, dilation=(1, 2)), shaped((N, 2, 4, 7))),
    Subject("RNN-plain", lambda nn: nn.RNN(3, 4), shaped((4, N, 3)), (1,), covers=("nn.RNN",)),
    Subject("RNN-bidirectional", lambda nn: nn.RNN(3, 4, 2, bidirectional=True), shaped((3, N, 3)), (1,)),
    Subject("RNN-batch_first", lambda nn: nn.RNN(3, 4, batch_first=True, bias=False), shaped((N, 3, 3))),
    Subject("RNN-packed", models.Packed, _packed, (0, None)),
    Subject("RNN-hx", lambda nn: nn.RNN(3, 4, 2), shaped((3, N, 3), (2, N, 4)), (1, 1)),
    Subject("RNN-relu", models.remembering, shaped((3, N, 3)), (1,), covers=("models.identity_initialise",)),
    Subject("RNNCell-plain", lambda nn: nn.RNNCell(3, 4), shaped((N, 3), (N, 4)), (0, 0), covers=("nn.RNNCell",)),
    Subject("RNNCell-relu", lambda nn: nn.RNNCell(3, 4, nonlinearity="relu"), shaped((N, 3))),
    Subject("conv2d", models.Convolution, shaped((N, 2, 5, 6), (3, 2, 3, 2), (3,)), (0, None, None), _FUNCTION, ("conv2d",)),
    Subject("conv_transpose2d", models.Transposed, shaped((N, 4, 3, 2)), (0,), _FUNCTION, ("conv_transpose2d",)),
    Subject("unfold", models.Unfold, shaped((N, 2, 5, 4)), (0,), _FUNCTION, ("unfold",)),
    Subject("fold", models.Fold, shaped((N, 12, 9)), (0,), _FUNCTION, ("fold",)),
    Subject("max_pool2d", models.Pool, shaped((N, 2, 4, 4)), (0,), _FUNCTION, ("max_pool2d",)),
    Subject("rnn", models.Recurrence, shaped((3, N, 3), (1, N, 4)), (1, 1), _FUNCTION, ("rnn",)),
    Subject("rnn-lengths", models.PaddedRecurrence, _with_lengths(shaped((4, N, 3), (1, N, 4))), (1, 1, 0), _TWIN),
    Subject("rnn-sigmoid", models.SigmoidRecurrence, shaped((3, N, 3), (1, N, 4)), (1, 1), _TWIN),
    Subject("rnn_cell", models.Cell, shaped((N, 3), (N, 4)), (0, 0), _FUNCTION, ("rnn_cell",)),
    Subject("max_over_time", models.MaxOverTime, shaped((4, N, 3)), (1,), _TWIN, ("max_over_time",)),
    Subject("max_over_time-lengths", models.MaxOverTime, _with_lengths(shaped((4, N, 3))), (1, 0), _TWIN),
    Subject("LocallyConnected2d", models.locally_connected, shaped((N, 2, 4, 5)), (0,), _TWIN, ("nn.LocallyConnected2d",)),
    Subject("network", models.Network, shaped((N, 1, 6, 6))),
    Subject("classifier", models.Classifier, shaped((3, N, 3)), (1,)),
    Subject(
        "RecurrentNet",
        lambda nn: tu.models.RecurrentNet(3, 4, 2, 2, True, "tanh", "sigmoid", nn=nn),
        shaped((3, N, 3), (4, N, 4)),
        (1, 1),
        covers=("models.RecurrentNet",),
        large=True,
    ),
    Subject(
        "SequenceClassifier",
        lambda nn: tu.models.SequenceClassifier(3, 4, 2, nn=nn),
        _with_lengths(shaped((4, N, 3))),
        (1, 0),
        covers=("models.SequenceClassifier",),
        large=True,
    ),
    Subject(
        "truncated_bptt",
        models.Segments,
        shaped((4, N, 3), (4, N, 2)),
        (1, 1),
        covers=("models.truncated_bptt", "models.per_step_loss"),
        large=True,
    ),
    Subject(
        "LeNet5",
        lambda nn: tu.models.lenet5(nn=nn),
        shaped((N, 1, 32, 32)),
        covers=("models.LeNet5", "models.lenet5"),
        large=True,
    ),
    Subject(
        "AlexNet",
        lambda nn: tu.models.alexnet(5, "grouped", ("fc6", "fc7"), 0.0, nn=nn),
        shaped((N, 3, 71, 71)),
        covers=("models.AlexNet", "models.alexnet"),
        large=True,
    ),
    Subject(
        "GoogLeNet",
        lambda nn: tu.models.googlenet(5, nn=nn).eval(),
        shaped((N, 3, 32, 32)),
        covers=("models.GoogLeNet", "models.googlenet"),
        large=True,
    ),
    Subject(
        "CifarResNet",
        lambda nn: tu.models.cifar_resnet(8, nn=nn),
        shaped((N, 3, 8, 8)),
        covers=("models.CifarResNet", "models.cifar_resnet"),
        large=True,
    ),
    Subject(
        "ResNet-basic",
        lambda nn: tu.models.ResNet(tu.models.resnet.BasicBlock, (1, 1, 1, 1), 5, nn=nn).eval(),
        shaped((N, 3, 32, 32)),
        covers=("models.ResNet", "models.resnet18", "models.resnet34"),
        large=True,
    ),
    Subject(
        "ResNet-bottleneck",
        lambda nn: tu.models.ResNet(tu.models.resnet.Bottleneck, (1, 1, 1, 1), 5, nn=nn).eval(),
        shaped((N, 3, 32, 32)),
        covers=("models.resnet50",),
        large=True,
    ),
    Subject(
        "DenseNet",
        lambda nn: tu.models.DenseNet(4, (2, 2), 8, 5, imagenet=False, nn=nn),
        shaped((N, 3, 8, 8)),
        covers=("models.DenseNet", "models.densenet121", "models.densenet_bc_100_12"),
        large=True,
    ),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}
