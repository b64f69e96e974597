"""`replace` on the modules of real programs: wrapped, compiled, traced, lazy, quantised and of other kinds; and its report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import torch_unroll as tu
from tests.programs.swappable import MODULES
from torch_unroll.replace import Report

CLASSES = tuple(getattr(tu.nn, name) for name in MODULES)


BEFORE = "call replace before tracing; scripting accepts only torch's modules"


class Convolutional(nn.Module):
    """A model whose convolutions and pooling are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 3), nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.conv(x)))


CONVOLUTIONAL = {"conv": "Conv2d", "after.0": "MaxPool2d", "after.1": "ConvTranspose2d"}


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class Functional(nn.Module):
    """A model that calls torch's functions directly, in addition to a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(2, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.conv2d(self.conv(x), self.weight), 2)


class TestReplace:
    """The effect of `replace` on the modules that it swaps."""

    @pytest.mark.parametrize("name", ["ConvTranspose2d", "Unfold", "Fold"])
    def test_identity_and_state_survive(self, name: str) -> None:
        make, shape = MODULES[name]
        module, x = make(nn), torch.randn(shape)
        expected, attributes = _first(module(x)), vars(module).copy()
        parameters = [id(parameter) for parameter in module.parameters()]
        calls: list[str] = []
        module.register_forward_hook(lambda *_: calls.append("hook"))
        report = tu.replace(module)
        assert type(module) is getattr(tu.nn, name)
        assert report.swapped == {"": name}
        with tu.use_engine("torch"):
            torch.testing.assert_close(_first(module(x)), expected)
        assert calls == ["hook"]
        assert [id(parameter) for parameter in module.parameters()] == parameters
        assert vars(module).keys() == attributes.keys()

    def test_only_a_module_is_accepted(self) -> None:
        for call, model in ((tu.replace, "resnet"), (tu.restore, None), (tu.replace, [nn.Conv2d(1, 1, 1)])):
            with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got (str|NoneType|list)"):
                call(model)

    def test_isinstance(self) -> None:
        for name, (make, _) in MODULES.items():
            module = make(nn)
            report = tu.replace(module)
            assert isinstance(module, getattr(nn, name)) == (name != "RNN")
            assert ("torch.nn.RNNBase" in report.notes.get("", "")) == (name == "RNN")
        rnn = nn.RNN(2, 3)
        assert "RNN (isinstance finds a torch.nn.RNNBase, not a torch.nn.RNN)" in str(tu.replace(rnn))
        assert isinstance(rnn, nn.RNNBase)


class Recurrence(nn.RNNBase):
    """A user's subclass of a recurrence."""


class Spread(nn.modules.conv._ConvNd):
    """A user's subclass of a convolution."""


def _with_own_forward() -> nn.Module:
    pool = nn.MaxPool2d(2)
    pool.forward = pool.forward  # as tools that wrap a forward do
    return pool


def _quantised() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(model.eval())
    prepared(torch.randn(1, 3, 4, 4))
    return torch.ao.quantization.convert(prepared)[0]


def _trained_for_quantisation() -> nn.Module:
    model = torch.ao.quantization.fuse_modules_qat(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), ["0", "1"])
    model.qconfig = torch.ao.quantization.default_qat_qconfig
    return torch.ao.quantization.prepare_qat(model)[0]


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        f"{kind}{dims}d": (
            lambda name=f"{kind}{dims}d": getattr(nn, name)(*((4,) if "Pool" in name else (3, 4, 2))),
            f"no kernels for {kind}{dims}d",
        )
        for kind, every in (("Conv", (1, 3)), ("ConvTranspose", (1, 3)), ("MaxPool", (1, 3)), ("AdaptiveMaxPool", (1, 2, 3)))
        for dims in every
    },
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, 3), "no kernels for FractionalMaxPool2d"),
    "MaxUnpool2d": (lambda: nn.MaxUnpool2d(2), "no kernels for MaxUnpool2d"),
    **{
        name: (lambda name=name: getattr(nn, name)(3, 4), f"no kernels for {name}")
        for name in ("LSTM", "GRU", "LSTMCell", "GRUCell")
    },
    "a recurrence of a user's": (lambda: Recurrence("LSTM", 3, 4), "no kernels for Recurrence"),
    "a convolution of a user's": (
        lambda: Spread(3, 4, (2,), (1,), (0,), (1,), False, (0,), 1, True, "zeros"),
        "no kernels for Spread",
    ),
    "LazyConv2d": (lambda: nn.LazyConv2d(4, 3), "LazyConv2d becomes a Conv2d at its first call: call replace after that"),
    "LazyConvTranspose2d": (
        lambda: nn.LazyConvTranspose2d(4, 3),
        "LazyConvTranspose2d becomes a ConvTranspose2d at its first call: call replace after that",
    ),
    "LazyConv1d": (lambda: nn.LazyConv1d(4, 3), "no kernels for Conv1d"),
    "with a forward of its own": (_with_own_forward, "this MaxPool2d has its own forward"),
    "quantised": (_quantised, "Conv2d is quantised, or prepared for quantisation-aware training"),
    "trained for quantisation": (_trained_for_quantisation, "ConvBn2d is quantised, or prepared for quantisation-aware training"),
}


class TestReport:
    """The report names every convolution, max pooling, unpooling and recurrence that is not swapped and is not ours. Of other
    modules it names only scripted or traced ones, and graphs that call torch's functions directly."""

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", LEFT)
    def test_left(self, name: str) -> None:
        make, reason = LEFT[name]
        others = [nn.Linear(3, 3), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2), nn.Embedding(2, 2), nn.Sequential()]
        model = nn.Sequential(make(), *others)
        kind = type(model[0])
        report = tu.replace(model)
        assert report.left == {"0": reason}
        assert not report.swapped
        assert type(model[0]) is kind
        assert str(report).splitlines() == [f"0  left     {reason}", "0 swapped, 1 left"]

    def test_ours_and_their_subclasses_are_no_news(self) -> None:
        class Named(tu.nn.Conv2d):
            pass

        report = tu.replace(nn.Sequential(Named(3, 4, 3), tu.nn.RNN(3, 4), weight_norm(tu.nn.Conv2d(3, 4, 3))))
        assert (report.swapped, report.left) == ({}, {})

    def test_a_network_of_many_layers_prints_as_a_table_with_counts(self) -> None:
        model = nn.ModuleDict({"backbone": tu.models.resnet50(nn=nn), "neck": nn.LSTM(3, 4), "head": nn.RNN(3, 4)})
        *rows, counts, total = str(tu.replace(model)).splitlines()
        assert (counts, total) == ("swapped: 53 Conv2d, 1 MaxPool2d, 1 RNN", "55 swapped, 1 left")
        paths = {name for name, module in model.named_modules() if isinstance(module, (*CLASSES, nn.LSTM))}
        width = max(map(len, paths))
        assert {row[:width].rstrip() for row in rows} == paths
        assert {row[width : width + 11] for row in rows} == {"  swapped  ", "  left     "}

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(1, 3, 8, 8))])
    def test_scripted_and_traced(self, make: Callable[[nn.Module], nn.Module]) -> None:
        model = nn.ModuleDict({"head": nn.Conv2d(3, 3, 1), "body": make(Convolutional())})
        report = tu.replace(model)
        assert report.swapped == {"head": "Conv2d"}
        assert report.left.keys() == {"body", *(f"body.{name}" for name in CONVOLUTIONAL)}
        assert report.left["body.conv"] == f"Conv2d is scripted or traced: {BEFORE}"
        functions = tu.replace(make(Functional()))
        assert functions.left[""].endswith(f"its calls are already recorded: {BEFORE}")

    def test_graphs(self) -> None:
        traced, x = torch.fx.symbolic_trace(Functional()), torch.randn(1, 3, 8, 8)
        expected = traced(x)
        report = tu.replace(traced)
        assert report.swapped == {"conv": "Conv2d"}
        assert report.left == {"": "its graph calls these functions directly, without a module: conv2d (1), max_pool2d (1)"}
        with tu.use_engine("torch"):
            torch.testing.assert_close(traced(x), expected)
        exported = torch.export.export(Functional(), (x,)).module()
        assert tu.replace(exported).left == {
            "": "its graph calls these functions directly, without a module: conv2d (2), max_pool2d (1)"
        }
        assert tu.replace(torch.fx.symbolic_trace(Convolutional())) == Report(swapped=CONVOLUTIONAL)


class TestWrapped:
    """Modules inside the wrappers of other tools are swapped."""

    @pytest.mark.parametrize("in_place", [False, True])
    def test_compiled(self, in_place: bool) -> None:
        torch._dynamo.reset()
        ran_ours: list[bool] = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
            def run(*inputs: Tensor) -> Any:
                ran_ours.append("torch_unroll.conv2d_fprop" in str(graph.graph))
                return graph.forward(*inputs)

            return run

        model, x = Convolutional(), torch.randn(1, 3, 8, 8)
        if in_place:
            model.compile(backend=backend)
        compiled = model if in_place else torch.compile(model, backend=backend)
        expected = compiled(x)
        for change in (tu.replace, tu.restore, tu.replace):
            prefix = "" if in_place else "_orig_mod."
            assert change(compiled).swapped == {prefix + name: kind for name, kind in CONVOLUTIONAL.items()}
            with tu.use_engine("torch"):
                torch.testing.assert_close(compiled(x), expected)
        assert ran_ours == [False, True, False, True]

    def test_data_parallel(self) -> None:
        model, x = nn.DataParallel(Convolutional()), torch.randn(2, 3, 8, 8)
        expected = model(x)
        assert tu.replace(model).swapped.keys() == {f"module.{name}" for name in CONVOLUTIONAL}
        with tu.use_engine("torch"):
            torch.testing.assert_close(model(x), expected)

    def test_distributed(self) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            plain, x = Convolutional(), torch.randn(2, 3, 8, 8)
            model = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
            assert tu.replace(model).swapped.keys() == {f"module.{name}" for name in CONVOLUTIONAL}
            with tu.use_engine("torch"):
                model(x).sum().backward()
            plain(x).sum().backward()
            for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
        finally:
            dist.destroy_process_group()
