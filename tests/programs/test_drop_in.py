"""Unmodified models have the same results and gradients under `override` and after `replace`; the output of `explain`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll.engines import limits, resolve
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")


class Everything(nn.Module):
    """A model that uses the ops that torch has as well, some as modules and some as functions, with two tied layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.second.weight
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.rnn = nn.RNN(16, 5, bidirectional=True, nonlinearity="relu")
        self.cell = nn.RNNCell(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.third(self.second(self.first(x)))))
        x = F.max_pool2d(self.up(x), 2, stride=1, padding=1, return_indices=True)[0]
        x = F.fold(F.unfold(x, 2, stride=2), (6, 6), 2, stride=2, padding=1) if x.shape[-1] % 2 == 0 else x
        x = F.adaptive_avg_pool2d(x, (4, 4))
        sequence = x.permute(1, 0, 2, 3).flatten(2)  # (C, N, 16), where the channels become steps
        output, h = self.rnn(sequence)
        return self.cell(output[-1]) + h.sum()


def _results(model: nn.Module, x: Tensor) -> list[Tensor]:
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def _launched(recorded: Any) -> set[str]:
    return {plan.kernel.name for _, plan in recorded.launches}


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_override(target: Target) -> None:
    model = Everything().double().to(target.device)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=target.device, requires_grad=True)
    expected = _results(model, x)
    with tu.override(), tu.use_engine(target.engine), recording() as recorded:
        results = _results(model, x)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    if target.engine in ("cuda", "cupy"):
        names = " ".join(_launched(recorded))
        assert all(
            op in names
            for op in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "max_pool2d_forward", "max_pool2d_backward", "rnn")
        )


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_replace(target: Target) -> None:
    model = Everything().double().to(target.device)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, device=target.device, requires_grad=True)
    seen: list[str] = []
    model.first.register_forward_hook(lambda *_: seen.append("hook"))
    expected, state, first = _results(model, x), list(model.state_dict()), model.first
    report = tu.replace(model)
    with tu.use_engine(target.engine):
        results = _results(model, x)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.first is first
    assert seen == ["hook", "hook"]
    assert list(model.state_dict()) == state
    assert model.third.weight is model.second.weight
    assert set(report.swapped) == {"first", "second", "third", "pool", "up", "rnn", "cell"}
    assert not report.left


def test_replace_leaves_subclasses() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardized(3, 4, 3), torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.MaxPool2d(2))
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    report = tu.replace(model)
    torch.testing.assert_close(model(x), expected)
    assert report.swapped == {"2": "MaxPool2d"}
    assert report.left == {"0": "Standardized is a subclass of nn.Conv2d", "1": "ParametrizedConv2d is parametrized"}
    assert str(report).splitlines()[-1] == "1 swapped, 2 left"
    assert tu.replace(model).swapped == {}


def test_override_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    expected = model(x)
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    with tu.override(), tu.use_engine("torch"):
        y = torch.compile(model, fullgraph=True, backend=counter)(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert "torch_unroll.conv2d_fprop" in str(counter.graphs[0].graph)


def test_use_engine_restores_the_former_default() -> None:
    before = resolve(None)
    with tu.use_engine("torch"):
        assert resolve(None) == "torch"
        with tu.use_engine("cuda"):
            assert resolve(None) == "cuda"
        assert resolve(None) == "torch"
    assert resolve(None) == before


class TestExplain:
    """`explain` names the engine and the kernels that ran, and the reasons why other engines were passed over."""

    @pytest.mark.skipif("cuda-emulated" not in map(str, TARGETS), reason="the emulated kernels are not built")
    def test_names_the_kernels(self) -> None:
        x, w = torch.randn(1, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
        explanation = tu.explain("conv2d", x, w, engine="cuda")
        names = [plan.kernel.name for plan in explanation.launches]
        assert explanation.engine == "cuda"
        assert [
            name for name in names if name in ("conv2d_fprop_simt_kernel", "conv2d_dgrad_simt_kernel", "conv2d_wgrad_simt_kernel")
        ]
        assert "grid" in str(explanation)

    def test_gives_reasons(self) -> None:
        explanation = tu.explain("max_pool2d", torch.randn(1, 1, 4, 4), 2, engine="torch")
        assert explanation.engine == "torch"
        assert explanation.passed_over["cuda"]
        torchs = tu.explain("max_pool2d", torch.ones(1, 1, 4, 4, dtype=torch.int64), 2)
        assert torchs.engine == "torch's own operator"

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_call_that_torch_has_no_operator_for(self, device: str) -> None:
        x, weights = torch.randn(3, 2, 4, device=device), [torch.randn(4, 4, device=device) for _ in range(2)]
        for explanation in (
            tu.explain("max_over_time", x),
            tu.explain("max_over_time", lengths=torch.tensor([3, 1], device=device), x=x),
            tu.explain("rnn", lengths=torch.tensor([3, 1], device=device), input=x, h0=None, weights=weights),
            tu.explain("rnn", x, None, weights, nonlinearity="sigmoid"),
            tu.explain("rnn", x, None, weights, recompute_segments=2),
            tu.explain("rnn_cell", x[0], x[1], *weights, nonlinearity="sigmoid"),
        ):
            assert explanation.engine == "torch"
            why = f"torch.float32 on {device} is served by engine torch unless an engine is named"
            assert explanation.passed_over == {"cuda": why, "cupy": why, "numba": why}
        for explanation in (tu.explain("rnn", x, x[:1], weights), tu.explain("rnn_cell", x[0], x[1], *weights)):
            assert explanation.engine == "torch's own operator"
            assert list(explanation.passed_over) == ["cuda", "cupy", "numba", "torch"]

    @pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
    def test_within_a_transformed_function(self, transform: Any) -> None:
        weights, explanations = [torch.randn(4, 4) for _ in range(2)], []

        def explained(x: Tensor) -> Tensor:
            explanations.append(tu.explain("rnn", x.view(3, 2, 4), torch.zeros(1, 2, 4), weights))
            return x.square().sum()

        x = torch.randn(3, 24, requires_grad=True)
        transform(explained)(x if transform is torch.func.vmap else x[0])
        (explanation,) = explanations
        assert explanation.engine == "torch"

    def test_what_computed_an_input_is_not_explained(self) -> None:
        """`explain` differentiates the call alone, and leaves the graph that computed its inputs as it was."""
        x, h = torch.randn(2, 4), torch.zeros(2, 4)
        weights = [torch.randn(4, 4, requires_grad=True) for _ in range(2)]
        hidden = tu.rnn_cell(x, h, *weights, engine="torch")
        assert tu.explain("rnn_cell", x, hidden, *weights).engine == "torch's own operator"
        hidden.sum().backward()
        assert weights[0].grad is not None

    def test_a_call_too_large_for_the_kernels_that_torch_has_no_operator_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "is_large", lambda *_: True)
        monkeypatch.setattr(limits, "rnn_cell", lambda *_: "too large")
        monkeypatch.setattr(import_module("torch_unroll.rnn"), "claims", lambda *_: True)  # as for CUDA tensors
        x, weights = torch.randn(2, 4), [torch.randn(4, 4) for _ in range(2)]
        explanation = tu.explain("rnn_cell", x, x, *weights, nonlinearity="sigmoid")
        assert explanation.engine == "torch"
        assert explanation.passed_over == dict.fromkeys(("cuda", "cupy", "numba"), "too large")

    def test_an_unknown_op(self) -> None:
        with pytest.raises(ValueError, match=r"op: expected one of conv2d, .* got 'conv3d'"):
            tu.explain("conv3d")

    def test_engines_lists_all(self) -> None:
        available = tu.available_engines()
        assert list(available.reasons) == ["cuda", "cupy", "numba", "torch"]
        assert available.reasons["torch"] is None
        assert len(str(available).splitlines()) == 4
