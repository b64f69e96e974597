"""Small modules that call one function, either torch's or the equivalent one of torch_unroll, and small networks.

If torch lacks the function, the module for torch computes the same with torch's other functions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import torch_unroll as tu


def _require_tensor(x: Any) -> None:
    """Raises TypeError, as torch does, for an argument that is not a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a Tensor, got {type(x).__name__}")


def _require(condition: bool, message: str) -> None:
    """Raises RuntimeError, as torch does, unless the condition on an argument holds."""
    if not condition:
        raise RuntimeError(message)


class Call(nn.Module):
    """A module that calls one function. `namespace` is torch.nn or torch_unroll.nn, and selects whose function it is."""

    def __init__(self, namespace: Any):
        super().__init__()
        self.unrolled = namespace is tu.nn

    def parameter(self, name: str, *shape: int) -> None:
        """Adds a random parameter, drawn from torch's generator."""
        self.register_parameter(name, nn.Parameter(0.5 * torch.randn(shape)))


class Convolution(Call):
    """A convolution whose weight and bias are inputs."""

    def forward(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        convolve: Any = tu.conv2d if self.unrolled else F.conv2d
        return convolve(x, w, b, stride=(2, 1), padding=(1, 2), dilation=(1, 2))


class Transposed(Call):
    """A transposed convolution in two groups."""

    def __init__(self, namespace: Any):
        super().__init__(namespace)
        self.parameter("weight", 4, 3, 3, 2)
        self.parameter("bias", 6)

    def forward(self, x: Tensor) -> Tensor:
        transposed: Any = tu.conv_transpose2d if self.unrolled else F.conv_transpose2d
        return transposed(x, self.weight, self.bias, stride=2, padding=1, output_padding=(1, 0), groups=2)


class Unfold(Call):
    """Unfolds an image into columns."""

    def forward(self, x: Tensor) -> Tensor:
        unfold: Any = tu.unfold if self.unrolled else F.unfold
        return unfold(x, (3, 2), dilation=1, padding=1, stride=2)


class Fold(Call):
    """Folds columns into an image."""

    def forward(self, columns: Tensor) -> Tensor:
        fold: Any = tu.fold if self.unrolled else F.fold
        return fold(columns, (5, 4), (3, 2), dilation=1, padding=1, stride=2)


class Pool(Call):
    """Max pooling with overlapping windows, which also returns the indices of the maxima."""

    def forward(self, x: Tensor) -> Any:
        pool: Any = tu.max_pool2d if self.unrolled else F.max_pool2d
        return pool(x, (3, 2), 1, 1, return_indices=True)


class Recurrence(Call):
    """An Elman recurrence whose initial state is an input."""

    def __init__(self, namespace: Any):
        super().__init__(namespace)
        for name, shape in (("w_ih", (4, 3)), ("w_hh", (4, 4)), ("b_ih", (4,)), ("b_hh", (4,))):
            self.parameter(name, *shape)

    def weights(self) -> list[Tensor]:
        """The weights in torch's order."""
        return [self.w_ih, self.w_hh, self.b_ih, self.b_hh]

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        if self.unrolled:
            return tu.rnn(x, h0, self.weights())
        return torch.rnn_tanh(x, h0, self.weights(), True, 1, 0.0, self.training, False, False)


class PaddedRecurrence(Recurrence):
    """A recurrence over samples with individual lengths of at least one step."""

    def forward(self, x: Tensor, h0: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.unrolled:
            return tu.rnn(x, h0, self.weights(), lengths=lengths)
        _require_tensor(x)
        _require(tuple(lengths.shape) == x.shape[1:2], "lengths: expected one a sample")
        output, _ = super().forward(x, h0)
        counts = torch.arange(x.shape[0], device=x.device)[:, None, None] < lengths[:, None]
        last = (lengths - 1)[None, :, None].expand(1, -1, output.shape[2])
        return torch.where(counts, output, torch.zeros_like(output)), output.gather(0, last)


class SigmoidRecurrence(Recurrence):
    """A recurrence with a nonlinearity that torch's recurrences lack."""

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        if self.unrolled:
            return tu.rnn(x, h0, self.weights(), nonlinearity="sigmoid")
        _require_tensor(x)
        _require(x.dim() == h0.dim() == 3 and h0.shape[:2] == (1, x.shape[1]), "h0: expected one a sample")
        z = F.linear(x, self.w_ih, self.b_ih)
        h, states = h0[0].to(z.dtype), []
        for step in z.unbind(0):
            h = torch.sigmoid(step + F.linear(h, self.w_hh, self.b_hh))
            states.append(h)
        return torch.stack(states), h.unsqueeze(0)


class Cell(Recurrence):
    """A single recurrent step."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return tu.rnn_cell(x, h, *self.weights()) if self.unrolled else torch.rnn_tanh_cell(x, h, *self.weights())


class MaxOverTime(Call):
    """The maximum of each channel over all steps of a sequence, or over the first `lengths` steps."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.unrolled:
            return tu.max_over_time(x, lengths)
        _require_tensor(x)
        _require(x.dim() == 3 and x.is_floating_point(), "x: expected floating-point numbers in three dimensions")
        if lengths is not None:
            _require(tuple(lengths.shape) == x.shape[1:2], "lengths: expected one a sample")
            counts = torch.arange(x.shape[0], device=x.device)[:, None, None] < lengths[:, None]
            x = torch.where(counts, x, torch.full_like(x, -torch.inf))
        return x.max(0).values


class LocallyConnected(nn.Module):
    """torch_unroll.nn.LocallyConnected2d(2, 3, (4, 5), (2, 3)), written with torch's functions, with the same parameter names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 3, 12))
        self.bias = nn.Parameter(torch.randn(3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        _require(x.dim() in (3, 4) and x.shape[-3:] == (2, 4, 5), "input: expected (N, 2, 4, 5)")
        batched = x if x.dim() == 4 else x.unsqueeze(0)
        columns = F.unfold(batched, (2, 3))
        y = torch.bmm(self.weight, columns.permute(2, 1, 0)).permute(2, 1, 0)
        return (y.reshape(batched.shape[0], 3, 3, 3) + self.bias).view(*x.shape[:-3], 3, 3, 3)


def locally_connected(namespace: Any) -> nn.Module:
    """The module of torch_unroll.nn, or its equivalent for torch.nn."""
    return tu.nn.LocallyConnected2d(2, 3, (4, 5), (2, 3)) if namespace is tu.nn else LocallyConnected()


class Packed(nn.Module):
    """An RNN that gets the tensors of a PackedSequence, and returns the data of its packed output and h_n."""

    def __init__(self, namespace: Any):
        super().__init__()
        self.rnn = namespace.RNN(3, 4)

    def forward(self, data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(PackedSequence(data, batch_sizes))
        return output.data, h_n


class Network(nn.Module):
    """Convolution, ReLU, convolution, max pooling and a linear layer."""

    def __init__(self, namespace: Any):
        super().__init__()
        self.first, self.second = namespace.Conv2d(1, 3, 3, padding=1), namespace.Conv2d(3, 2, 3)
        self.pool, self.output = namespace.MaxPool2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.pool(self.second(torch.relu(self.first(x)))).flatten(1))


class Classifier(nn.Module):
    """A recurrence, a linear layer, and the maximum of that layer's output over time."""

    def __init__(self, namespace: Any):
        super().__init__()
        self.rnn, self.output, self.pool = namespace.RNN(3, 4), nn.Linear(4, 2), MaxOverTime(namespace)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.output(self.rnn(x)[0]))


class Segments(nn.Module):
    """Truncated BPTT over two windows; returns the losses of both."""

    def __init__(self, namespace: Any):
        super().__init__()
        self.net = tu.models.RecurrentNet(3, 4, 2, nn=namespace)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return tuple(tu.models.truncated_bptt(self.net, x, target, 2, F.mse_loss))


def remembering(namespace: Any) -> nn.Module:
    """A ReLU RNN that is initialised as the identity."""
    rnn = namespace.RNN(3, 4, nonlinearity="relu")
    tu.models.identity_initialise(rnn)
    return rnn
