"""Values past a sample's length have no effect: results are the same whether those values are 0, NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import torch_unroll as tu
from torch_unroll.testing import Target, assert_exact, targets
from torch_unroll.testing.rnn import Case

TARGETS = targets("rnn")
LENGTHS = (2, 0, 4, 9, -1)
GARBAGE = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}

CASES = (
    Case("tanh"),
    Case("relu-batch-first", nonlinearity="relu", batch_first=True),
    Case("sigmoid-bidirectional", nonlinearity="sigmoid", bidirectional=True),
    Case("identity-without-bias", nonlinearity="identity", bias=False, bidirectional=True, batch_first=True),
    Case("two-layers", num_layers=2, bidirectional=True),
    Case("dropout", num_layers=2, options={"dropout": 0.5, "training": True}),
    Case("recomputed", num_layers=2, options={"recompute_segments": 3}),
)
CASES = tuple(replace(case, T=4, N=len(LENGTHS), lengths=LENGTHS) for case in CASES)


def _spoiled(tensor: Tensor, beyond: Tensor, value: float) -> Tensor:
    """Returns a copy with a value where `beyond` is true. `beyond` is (T, N) or (N, T); for states (D, N, H) it is (N)."""
    places = beyond.unsqueeze(-1) if beyond.dim() == 2 else beyond.view(1, -1, 1)
    return tensor.detach().masked_fill(places, value)


class Call:
    """A call with `value` in places that must not be read: in x and the incoming gradients past the lengths, and in the states of
    samples without steps."""

    def __init__(self, case: Case, target: Target, dtype: torch.dtype, value: float):
        torch.manual_seed(1)
        self.case, self.target = case, target
        lengths = torch.tensor(LENGTHS, device=target.device)
        beyond = torch.arange(case.T, device=target.device).unsqueeze(1) >= lengths
        beyond = beyond.T if case.batch_first else beyond
        x, h0, *weights = case.tensors(target.device, dtype, grad=False)
        self.empty = lengths <= 0
        self.inputs = [_spoiled(x, beyond, value), _spoiled(h0, self.empty, value), *weights]
        self.directions = [_spoiled(torch.randn_like(x), beyond, value), _spoiled(torch.randn_like(h0), self.empty, value)]
        self.directions += [torch.randn_like(weight) for weight in weights]
        output, h_n = self.outputs(*self.inputs)
        self.weightings = [_spoiled(torch.randn_like(output), beyond, value), torch.randn_like(h_n)]

    def outputs(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)  # every call drops the same elements
        return self.case.run(*inputs, engine=self.target.engine)

    def _leaves(self) -> list[Tensor]:
        return [tensor.detach().clone().requires_grad_() for tensor in self.inputs]

    def gradients(self) -> list[Tensor]:
        """Returns the outputs and the gradients."""
        leaves = self._leaves()
        output, h_n = self.outputs(*leaves)
        gradients = torch.autograd.grad((output, h_n), leaves, self.weightings)
        return [output, h_n[:, ~self.empty], *gradients]  # omits samples without steps: their h_n is h0, which holds `value`

    def second(self) -> list[Tensor]:
        """Returns the gradients of a sum of gradients; the incoming gradients are leaves too."""
        leaves = self._leaves()
        weightings = [tensor.detach().clone().requires_grad_() for tensor in self.weightings]
        first = torch.autograd.grad(self.outputs(*leaves), leaves, weightings, create_graph=True)
        *second, by_h_n = torch.autograd.grad(first, [*leaves, *weightings], self.directions, materialize_grads=True)
        # by_h_n is the gradient with respect to dh_n. A sample without steps has dh0 = dh_n, so by_h_n is its direction of h0,
        # which holds `value`.
        return [*second, by_h_n[:, ~self.empty]]

    def tangents(self) -> list[Tensor]:
        """Returns the tangents of the outputs and of the gradients."""
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(self._leaves(), self.directions, strict=True)]
            outputs = self.outputs(*duals)
            gradients = torch.autograd.grad(outputs, duals, self.weightings)
            output, h_n, *moved = (forward_ad.unpack_dual(result).tangent for result in (*outputs, *gradients))
        return [output, h_n[:, ~self.empty], *moved]


RESULTS: dict[str, Callable[[Call], list[Tensor]]] = {
    "gradients": Call.gradients,
    "second": Call.second,
    "tangents": Call.tangents,
}


@pytest.mark.parametrize(
    ("case", "results"),
    [
        pytest.param(case, results, id=f"{case}-{results}")
        for case in CASES
        for results in RESULTS
        if not (case.name == "recomputed" and results == "tangents")  # torch's checkpoints do not support forward mode
    ],
)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_lies_past_a_length_counts_for_nothing(target: Target, case: Case, results: str) -> None:
    compute = RESULTS[results]
    for dtype in (torch.float32, torch.float64):
        expected = compute(Call(case, target, dtype, 0.0))
        assert all(clean.isfinite().all() for clean in expected)
        for name, value in GARBAGE.items():
            for number, (ours, clean) in enumerate(zip(compute(Call(case, target, dtype, value)), expected, strict=True)):
                assert_exact(ours.detach(), clean.detach(), f"{name}, {dtype}: result {number}")


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_module_and_the_pooling_after_it(target: Target, value: float) -> None:
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=target.device)
    module = tu.nn.RNN(3, 4, num_layers=2, batch_first=True, bidirectional=True, engine=target.engine).to(target.device)
    beyond = torch.arange(4, device=target.device) >= lengths.unsqueeze(1)
    x = torch.randn(len(LENGTHS), 4, 3, device=target.device)
    results = []
    for filling in (0.0, value):
        inputs = [_spoiled(x, beyond, filling).requires_grad_(), *module.parameters()]
        output, h_n = module(inputs[0], lengths=lengths)
        pooled = tu.max_over_time(output.transpose(0, 1), lengths, engine=target.engine)
        loss = pooled.where(pooled > -torch.inf, 0).square().sum() + h_n.sum()
        results.append([output, h_n, pooled, *torch.autograd.grad(loss, inputs)])
    for clean, spoiled in zip(*results, strict=True):
        assert_exact(spoiled.detach(), clean.detach())


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_transformed_and_compiled(target: Target, value: float) -> None:
    """Checks a batch of lengths under vmap, and a compiled call."""
    torch._dynamo.reset()
    _, _, w_ih, w_hh, *_ = Case("").tensors(target.device, torch.float32, grad=False)
    lengths = torch.tensor([LENGTHS, LENGTHS[::-1]], device=target.device)
    beyond = torch.arange(4, device=target.device).view(1, 4, 1) >= lengths.unsqueeze(1)  # (B, T, N)

    def loss(w_ih: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        output, h_n = tu.rnn(x, None, [w_ih, w_hh], lengths=lengths, engine=target.engine)
        return output.square().sum() + h_n.sum()

    batched = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, results = torch.randn(2, 4, len(LENGTHS), 3, device=target.device), []
    for filling in (0.0, value):
        spoiled = x.masked_fill(beyond.unsqueeze(-1), filling)
        w = w_ih.clone().requires_grad_()
        results.append((batched(w_ih, spoiled, lengths), *torch.autograd.grad(compiled(w, spoiled[0], lengths[0]), w)))
    for clean, spoiled in zip(*results, strict=True):
        assert_exact(spoiled, clean)
