"""Prepared calls of `nn.RNN` follow its parameters, attributes and mode."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parametrize

import torch_unroll as tu
from tests.prepared.cases import assert_equal, no_single_launch

Module = torch.nn.RNN


def _pair(**options: Any) -> tuple[Module, Module]:
    ours, torchs = tu.nn.RNN(8, 8, engine="cuda", **options), torch.nn.RNN(8, 8, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def _compare(ours: Module, torchs: Module, calls: int = 1) -> None:
    """Asserts that results and gradients are torch's."""
    for _ in range(calls):
        values = torch.randn(4, 4, 8)
        results = []
        for module in (ours, torchs):
            module.zero_grad()
            x = values.clone().requires_grad_()
            output, h_n = module(x)
            (output.sin().sum() + h_n.cos().sum()).backward()
            results.append([output, h_n, x.grad, *(parameter.grad for parameter in module.parameters())])
        assert_equal(*results)


def _prepare(ours: Module) -> None:
    for _ in range(5):
        ours(torch.randn(4, 4, 8))[0].sum().backward()
    with no_single_launch():
        ours(torch.randn(4, 4, 8))


_BIASED, _UNBIASED = {"bias": True}, {"bias": False}
_OPTIONS: list[dict[str, Any]] = [_BIASED, _UNBIASED, {"num_layers": 2}, {"nonlinearity": "relu"}]


@pytest.mark.parametrize("options", _OPTIONS, ids=str)
@pytest.mark.parametrize("others", _OPTIONS, ids=str)
def test_modules_of_other_options_take_no_shortcut_of_each_other(
    options: dict[str, Any], others: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    _prepare(tu.nn.RNN(8, 8, engine="cuda", **options))
    _compare(*_pair(**others), calls=5)
    with torch.no_grad():
        for _ in range(5):
            tu.nn.RNN(8, 8, engine="cuda", **options)(torch.randn(4, 4, 8))
        ours, torchs = _pair(**others)
        x = torch.randn(4, 4, 8)
        assert_equal(ours(x), torchs(x))


def _in_place(module: Module) -> None:
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.5)


def _by_data(module: Module) -> None:
    module.weight_ih_l0.data = module.weight_ih_l0.data * 0.5


def _by_other_strides(module: Module) -> None:
    module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t()


def _by_assignment(module: Module) -> None:
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach() * 0.5)


def _loaded(module: Module) -> None:
    module.load_state_dict({name: tensor * 0.5 for name, tensor in module.state_dict().items()})


def _loaded_and_assigned(module: Module) -> None:
    module.load_state_dict({name: tensor * 0.5 for name, tensor in module.state_dict().items()}, assign=True)


def _with_batch_first(module: Module) -> None:
    module.batch_first = True


def _with_relu(module: Module) -> None:
    module.mode = "RNN_RELU"
    module.nonlinearity = "relu"


def _frozen(module: Module) -> None:
    module.weight_hh_l0.requires_grad_(False)


def _parametrized(module: Module) -> None:
    class Halved(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 0.5

    parametrize.register_parametrization(module, "weight_hh_l0", Halved())


_CHANGES = [
    _in_place,
    _by_data,
    _by_other_strides,
    _by_assignment,
    _loaded,
    _loaded_and_assigned,
    _with_batch_first,
    _with_relu,
    _frozen,
    _parametrized,
]


@pytest.mark.parametrize("change", _CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_module_changes_after_it_is_prepared(change: Callable[[Module], None]) -> None:
    ours, torchs = _pair()
    _prepare(ours)
    for module in (ours, torchs):
        change(module)
    _compare(ours, torchs, calls=5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
def test_copies_of_a_prepared_module(again: Callable[[Module], Module]) -> None:
    ours, torchs = _pair(num_layers=2)
    _prepare(ours)
    _compare(again(ours), torchs, calls=3)


def test_functional_call() -> None:
    ours, torchs = _pair()
    _prepare(ours)
    x = torch.randn(4, 4, 8)
    for factor in (2.0, 0.5, 0.25):
        parameters = {name: parameter.detach() * factor for name, parameter in ours.named_parameters()}
        assert_equal(functional_call(ours, parameters, (x,)), functional_call(torchs, parameters, (x,)))


def test_dropout_of_training_is_not_served_by_the_shortcut_of_evaluation() -> None:
    ours, torchs = _pair(num_layers=2, dropout=0.5)
    x = torch.randn(4, 4, 8)
    for training in (False, True, False, True):
        for module in (ours, torchs):
            module.train(training)
        for _ in range(4):
            torch.manual_seed(1)
            result = ours(x)
            torch.manual_seed(1)
            assert_equal(result, torchs(x))


def test_unbatched_and_packed_inputs_after_preparing() -> None:
    ours, torchs = _pair()
    _prepare(ours)
    x, hx = torch.randn(4, 4, 8), torch.randn(1, 4, 8)
    for _ in range(4):
        assert_equal(ours(x[:, 0]), torchs(x[:, 0]))
        assert_equal(ours(x, hx), torchs(x, hx))
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, [4, 3, 2, 1])
        assert_equal(ours(packed)[0].data, torchs(packed)[0].data)
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        ours(x, torch.randn(1, 3, 8))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_results_may_change_in_place_from_the_first_call_on(layers: int, batch_first: bool) -> None:
    """As in torch, neither the output nor h_n is a view that a Function has made."""
    ours, torchs = _pair(num_layers=layers, batch_first=batch_first)
    x = torch.randn(4, 4, 8)
    for _ in range(5):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                results, expected = ours(x), torchs(x)
                for result, theirs in zip(results, expected, strict=True):
                    assert_equal(result.mul_(2), theirs * 2)
