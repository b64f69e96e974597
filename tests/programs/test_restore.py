"""`restore` undoes `replace`, and also turns modules that were constructed from torch_unroll.nn into torch's."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import torch_unroll as tu
from tests.programs.swappable import MODULES
from torch_unroll.replace import Report


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("carry", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("direct", [False, True], ids=["replaced", "direct"])
@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_torchs_again(name: str, direct: bool, carry: Callable[[nn.Module], nn.Module]) -> None:
    make, shape = MODULES[name]
    torchs, x = make(nn), torch.randn(shape)
    expected = _first(torchs(x))
    if direct:
        module = make(tu.nn)
        module.load_state_dict(torchs.state_dict())
    else:
        module = copy.deepcopy(torchs)
        tu.replace(module)
    module = carry(module)
    tensors = {key: id(tensor) for key, tensor in module.named_parameters()}
    for _ in range(2):
        assert tu.restore(module) == Report(swapped={"": name}, verb="restored")
        assert type(module) is getattr(nn, name)
        assert vars(module).keys() == vars(torchs).keys()
        assert repr(module) == repr(torchs)
        torch.testing.assert_close(_first(module(x)), expected, rtol=0, atol=0)
        assert {key: id(tensor) for key, tensor in module.named_parameters()} == tensors
        assert tu.restore(module) == Report(verb="restored")
        assert tu.replace(module).swapped == {"": name}
        assert type(module) is getattr(tu.nn, name)


def test_nested_and_shared_modules_keep_their_places_hooks_and_ties() -> None:
    conv, pool = nn.Conv2d(3, 3, 3), nn.MaxPool2d(2)
    model = nn.Sequential(conv, nn.Sequential(pool, nn.ModuleDict({"again": conv, "tied": nn.Conv2d(3, 3, 3)})))
    model[1][1]["tied"].weight = conv.weight
    calls: list[str] = []
    conv.register_forward_hook(lambda *_: calls.append("forward"))
    conv.register_full_backward_hook(lambda *_: calls.append("backward"))
    state, classes = model.state_dict(), [type(module) for module in model.modules()]
    tu.replace(model)
    assert tu.restore(model).swapped == {"0": "Conv2d", "1.0": "MaxPool2d", "1.1.tied": "Conv2d"}
    assert [type(module) for module in model.modules()] == classes
    assert model[0] is model[1][1]["again"] is conv
    assert model[1][1]["tied"].weight is conv.weight
    assert all(tensor is state[key] or torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    conv(torch.randn(1, 3, 4, 4, requires_grad=True)).sum().backward()
    assert calls == ["forward", "backward"]


def test_modules_that_torch_cannot_express_are_reported() -> None:
    class Named(tu.nn.MaxPool2d):
        pass

    wrapped = tu.nn.MaxPool2d(2)
    wrapped.forward = wrapped.forward  # as tools that wrap a forward do
    model = nn.Sequential(
        tu.nn.RNN(3, 4, nonlinearity="sigmoid"),
        tu.nn.RNNCell(3, 4, nonlinearity="identity"),
        tu.nn.LocallyConnected2d(1, 1, 3, 2),
        Named(2),
        wrapped,
        nn.Linear(3, 4),
    )
    classes = [type(module) for module in model]
    report = tu.restore(model)
    assert not report.swapped
    assert report.left == {
        "0": "torch has no RNN with nonlinearity 'sigmoid'",
        "1": "torch has no RNNCell with nonlinearity 'identity'",
        "2": "torch has no LocallyConnected2d",
        "3": "Named is a subclass of torch_unroll.nn.MaxPool2d",
        "4": "this MaxPool2d has its own forward",
    }
    assert [type(module) for module in model] == classes
    assert str(report).splitlines()[-1] == "0 restored, 5 left"


@pytest.mark.parametrize("name", MODULES)
def test_a_named_engine_is_reported(name: str) -> None:
    module, torchs = MODULES[name][0](tu.nn), MODULES[name][0](nn)
    module.engine = "torch"
    report = tu.restore(module)
    assert report.notes == {"": "its engine 'torch' was dropped"}
    assert str(report).splitlines()[0] == f"(the model)  restored  {name} (its engine 'torch' was dropped)"
    assert vars(module).keys() == vars(torchs).keys()


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "RNNCell"])
def test_parametrized_modules(name: str) -> None:
    make, shape = MODULES[name]
    parameter = "weight_hh" if name == "RNNCell" else "weight"
    model = weight_norm(make(tu.nn), parameter)
    other, x = copy.deepcopy(model), torch.randn(shape)
    expected = model(x)
    assert tu.restore(model).swapped == {"": f"Parametrized{name}"}
    assert type(model).__mro__[1] is getattr(nn, name)
    torch.testing.assert_close(model(x), expected)
    assert isinstance(other, getattr(tu.nn, name)), "the copy shares its class with the module"
    parametrize.remove_parametrizations(model, parameter)
    assert type(model) is getattr(nn, name)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"RNN"}))  # torch.nn.RNN declares *args and **kwargs
def test_the_constructors_are_torchs_and_an_engine(name: str) -> None:
    """The parameters have torch's order and defaults, so that inspect, torch.nn.utils.skip_init and type checkers see them."""
    *ours, engine = inspect.signature(getattr(tu.nn, name)).parameters.values()
    theirs = inspect.signature(getattr(nn, name)).parameters.values()
    assert [(argument.name, argument.kind, argument.default) for argument in ours] == [
        (argument.name, argument.kind, argument.default) for argument in theirs
    ]
    assert (engine.name, engine.kind, engine.default) == ("engine", inspect.Parameter.KEYWORD_ONLY, None)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_skip_init(name: str) -> None:
    module = nn.utils.skip_init(getattr(tu.nn, name), 3, 4, 3, bias=False)
    assert type(module) is getattr(tu.nn, name)
    assert module.weight.device.type == "cpu"
    assert module.bias is None
