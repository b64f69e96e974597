"""Conv2d, MaxPool2d and LocallyConnected2d of torch_unroll.nn: module_db, padding modes, state_dict, repr and pickling."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import torch_unroll as tu
from tests.programs.torch_databases import module_infos
from torch_unroll.testing import Target, assert_as_accurate, targets

MODULES = {"Conv2d": "conv2d", "MaxPool2d": "max_pool2d"}
CASES = [(name, target) for name, op in MODULES.items() for target in targets(op)]


def _pair(name: str, arguments: Any, target: Target, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our module and torch's with the same parameters."""
    kwargs = {**arguments.kwargs, "device": target.device, "dtype": dtype} if name == "Conv2d" else arguments.kwargs
    ours = getattr(tu.nn, name)(*arguments.args, **kwargs, engine=target.engine)
    theirs = getattr(torch.nn, name)(*arguments.args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "target"), CASES, ids=str)
def test_module_db(name: str, target: Target, dtype: torch.dtype) -> None:
    info = module_infos()[name]
    samples = info.module_inputs_func(info, device=target.device, dtype=dtype, requires_grad=True, training=True)
    assert samples
    for sample in samples:
        ours, theirs = _pair(name, sample.constructor_input, target, dtype)
        exact = copy.deepcopy(theirs).double()
        results = []
        for module, module_dtype in ((ours, dtype), (theirs, dtype), (exact, torch.float64)):
            x = sample.forward_input.args[0].detach().to(module_dtype).requires_grad_()
            y, *indices = module(x) if getattr(module, "return_indices", False) else (module(x),)
            results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()]), *indices])
        for result, torchs, truth in zip(*results, strict=True):
            assert_as_accurate(result, torchs, truth, f"{name} {sample.desc}")
        x = sample.forward_input.args[0].detach().double().requires_grad_()
        module = _pair(name, sample.constructor_input, target, torch.float64)[0]
        assert torch.autograd.gradcheck(lambda x: module(x)[0] if getattr(module, "return_indices", False) else module(x), x)  # noqa: B023


def test_module_db_errors() -> None:
    infos = module_infos()
    name, *others = (name for name in MODULES if infos[name].module_error_inputs_func is not None)
    assert not others, "torch has error inputs for more of these modules, which this test has to cover"
    info = infos[name]
    for case in info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True):
        constructor, forward = case.module_error_input.constructor_input, case.module_error_input.forward_input
        with pytest.raises(case.error_type), tu.use_engine("torch"):
            getattr(tu.nn, name)(*constructor.args, **constructor.kwargs)(*forward.args, **forward.kwargs)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    ours = tu.nn.Conv2d(3, 4, (3, 2), padding=(2, 1), padding_mode=mode, engine="torch")
    theirs = torch.nn.Conv2d(3, 4, (3, 2), padding=(2, 1), padding_mode=mode)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda nn: nn.Conv2d(4, 6, (3, 2), stride=2, padding="valid", groups=2, bias=False),
        lambda nn: nn.MaxPool2d(3, 2, ceil_mode=True),
    ],
    ids=["Conv2d", "MaxPool2d"],
)
def test_looks_and_travels_like_torchs(make: Any) -> None:
    ours, theirs = make(tu.nn), make(torch.nn)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 4, 7, 7)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        torch.testing.assert_close(copied(x), ours(x))


def test_every_other_name_is_torchs() -> None:
    assert tu.nn.Linear is torch.nn.Linear
    with pytest.raises(AttributeError, match="Convolution2d"):
        _ = tu.nn.Convolution2d


@pytest.mark.parametrize("name", MODULES)
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    module = {"Conv2d": lambda: tu.nn.Conv2d(3, 4, 3, padding="same"), "MaxPool2d": lambda: tu.nn.MaxPool2d(2)}[name]()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with tu.use_engine("torch"):
        y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(y, module(x))
    y.sum().backward()
    assert x.grad is not None


class TestLocallyConnected2d:
    """A convolution whose filters differ at every output pixel."""

    @pytest.mark.parametrize("target", targets("unfold"), ids=str)
    def test_equal_filters_are_a_convolution(self, target: Target) -> None:
        layer = tu.nn.LocallyConnected2d(3, 4, (6, 5), 3, 2, 1, device=target.device, dtype=torch.float64, engine=target.engine)
        conv = torch.nn.Conv2d(3, 4, 3, 2, 1, device=target.device, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(conv.weight.flatten(1).expand_as(layer.weight))
            layer.bias.copy_(conv.bias.view(-1, 1, 1).expand_as(layer.bias))
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64, device=target.device, requires_grad=True)
        torch.testing.assert_close(layer(x), conv(x))
        torch.testing.assert_close(layer(x[0]), conv(x[0]))
        assert torch.autograd.gradcheck(
            lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)), (x, layer.weight, layer.bias)
        )

    def test_every_position_has_its_own(self) -> None:
        layer = tu.nn.LocallyConnected2d(1, 1, 3, 1, bias=False)
        x = torch.ones(1, 1, 3, 3)
        torch.testing.assert_close(layer(x).flatten(), layer.weight.flatten())

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"kernel_size: expected one that fits the padded input \(3, 3\), got \(5, 5\)"):
            tu.nn.LocallyConnected2d(1, 1, 3, 5)
        with pytest.raises(RuntimeError, match=r"input: expected \(N, 1, 3, 3\), got \(2, 1, 4, 3\)"):
            tu.nn.LocallyConnected2d(1, 1, 3, 2)(torch.ones(2, 1, 4, 3))
