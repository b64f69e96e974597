"""tu.nn.RNN and tu.nn.RNNCell compute the same as torch's modules on torch's own samples, and can replace them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map

import torch_unroll as tu
from tests.programs.torch_databases import load, module_infos
from torch_unroll.kernels import planning
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("rnn")
NAMES = ("RNN", "RNNCell")


def _samples(name: str, target: Target, dtype: torch.dtype) -> list[Any]:
    info = module_infos()[name]
    samples = list(
        info.module_inputs_func(info, target.device, dtype, requires_grad=True, training=True, with_packed_sequence=True)
    )
    assert len(samples) == {"RNN": 64, "RNNCell": 3}[name]
    return samples


def _pair(name: str, sample: Any, target: Target, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns our module and torch's, with the same weights."""
    arguments = sample.constructor_input
    torchs = getattr(torch.nn, name)(*arguments.args, **arguments.kwargs, device=target.device, dtype=dtype)
    ours = getattr(tu.nn, name)(*arguments.args, **arguments.kwargs, engine=target.engine, device=target.device, dtype=dtype)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def _map_floating(function: Callable[[Tensor], Tensor], arguments: Any) -> Any:
    """Applies a function to the tensors among the arguments, and to the data of packed sequences."""

    def one(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return value._replace(data=function(value.data))
        return function(value) if isinstance(value, Tensor) else value

    return tree_map(one, arguments, is_leaf=lambda value: isinstance(value, PackedSequence))


def _leaves(arguments: Any) -> list[Tensor]:
    flat = tree_leaves(arguments, is_leaf=lambda value: isinstance(value, PackedSequence))
    return [value.data if isinstance(value, PackedSequence) else value for value in flat if value is not None]


def _floating(outputs: Any) -> list[Tensor]:
    return _leaves(outputs)


def _run(module: torch.nn.Module, args: Any) -> list[Tensor]:
    """Returns the outputs, and the gradients of the inputs and parameters under a fixed, uneven weighting."""
    fresh = _map_floating(lambda tensor: tensor.detach().clone().requires_grad_(), args)
    outputs, leaves = _floating(module(*fresh)), [*_leaves(fresh), *module.parameters()]
    weightings = [torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64).view(tensor.shape).to(tensor) for tensor in outputs]
    return [*(tensor.detach() for tensor in outputs), *torch.autograd.grad(outputs, leaves, weightings)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torchs_samples(target: Target, name: str, dtype: torch.dtype) -> None:
    for sample in _samples(name, target, dtype):
        ours, torchs = _pair(name, sample, target, dtype)
        args = sample.forward_input.args
        for training in (True, False):  # gradients are also defined in eval mode
            ours.train(training)
            # With torch's default tolerances, since inputs up to 9 saturate tanh, where 1 - h² magnifies rounding errors of h.
            for mine, theirs in zip(_run(ours, args), _run(torchs, args), strict=True):
                torch.testing.assert_close(mine, theirs)
        if sample.reference_fn is not None and not isinstance(args[0], PackedSequence):
            reference = sample.reference_fn(ours, *args)
            torch.testing.assert_close(ours(*args), reference)


def _check_derivatives(module: torch.nn.Module, args: Any) -> None:
    """Checks first and second derivatives, as torch's test_grad and test_gradgrad do."""
    parameters = dict(module.named_parameters())

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        replacements = iter(tensors)
        replaced = _map_floating(lambda _: next(replacements), args)
        weights = dict(zip(parameters, replacements, strict=True))
        return tuple(_floating(torch.func.functional_call(module, weights, replaced)))

    inputs = [*(tensor.detach().clone().requires_grad_() for tensor in _leaves(args)), *parameters.values()]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


# Every ninth of the 64 samples of RNN covers each kind of input and each option; of RNNCell, only the first is checked.
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torchs_test_grad_and_gradgrad(target: Target, name: str, every: int) -> None:
    for sample in _samples(name, target, torch.float64)[::every]:
        _check_derivatives(_pair(name, sample, target, torch.float64)[0], sample.forward_input.args)


def _check_non_contiguous(module: torch.nn.Module, args: Any) -> None:
    """Checks inputs and gradients whose neighbours in memory are NaN, as torch's test_non_contiguous_tensors does."""

    def spread(tensor: Tensor) -> Tensor:
        return torch.stack((tensor, torch.full_like(tensor, float("nan"))), -1)[..., 0]

    args = _map_floating(Tensor.detach, args)
    inputs = _map_floating(lambda tensor: spread(tensor).requires_grad_(), args)
    outputs = _floating(module(*inputs))
    weightings = [torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64).view(tensor.shape).to(tensor) for tensor in outputs]
    gradients = torch.autograd.grad(outputs, [*_leaves(inputs), *module.parameters()], [spread(tensor) for tensor in weightings])
    for result, expected in zip([*outputs, *gradients], _run(module, args), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torchs_test_non_contiguous_tensors(target: Target, name: str) -> None:
    for sample in _samples(name, target, torch.float32):
        _check_non_contiguous(_pair(name, sample, target, torch.float32)[0], sample.forward_input.args)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torchs_error_samples(target: Target, name: str) -> None:
    info = module_infos()[name]
    errors = list(info.module_error_inputs_func(info, target.device, torch.float32, requires_grad=False, training=True))
    assert errors
    for error in errors:
        arguments = error.module_error_input.constructor_input
        kwargs = {**arguments.kwargs, "engine": target.engine}
        if error.error_on == load("common_modules").ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                getattr(tu.nn, name)(*arguments.args, **kwargs)
        else:
            module = getattr(tu.nn, name)(*arguments.args, **{"device": target.device, **kwargs})
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*error.module_error_input.forward_input.args)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_packed_sequences_keep_their_order(target: Target, enforce_sorted: bool) -> None:
    lengths = (4, 2, 1) if enforce_sorted else (1, 4, 2)
    sequences = [torch.randn(length, 3, device=target.device) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=enforce_sorted)
    ours = tu.nn.RNN(3, 4, 2, bidirectional=True, engine=target.engine, device=target.device)
    torchs = torch.nn.RNN(3, 4, 2, bidirectional=True, device=target.device)
    torchs.load_state_dict(ours.state_dict())
    for hx in (None, torch.randn(4, 3, 4, device=target.device)):
        (mine, h_n), (theirs, expected) = ours(packed, hx), torchs(packed, hx)
        torch.testing.assert_close(mine.data, theirs.data)
        torch.testing.assert_close(h_n, expected)
        assert_exact(mine.batch_sizes, theirs.batch_sizes)
        assert (mine.sorted_indices is None) == (theirs.sorted_indices is None)
    padded = torch.nn.utils.rnn.pad_sequence(sequences)
    output, last = ours(padded, lengths=torch.tensor(lengths, device=target.device))
    unpacked, _ = torch.nn.utils.rnn.pad_packed_sequence(ours(packed)[0])
    torch.testing.assert_close(output, unpacked)
    torch.testing.assert_close(last, ours(packed)[1])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_modules_are_torchs_from_outside(nonlinearity: str) -> None:
    arguments = {"bias": False, "nonlinearity": nonlinearity}
    both = (
        tu.nn.RNN(3, 4, 2, batch_first=True, dropout=0.1, bidirectional=True, **arguments),
        torch.nn.RNN(3, 4, 2, batch_first=True, dropout=0.1, bidirectional=True, **arguments),
    )
    cells = tu.nn.RNNCell(3, 4, **arguments), torch.nn.RNNCell(3, 4, **arguments)
    for ours, torchs in (both, cells):
        assert repr(ours) == repr(torchs)
        assert list(ours.state_dict()) == list(torchs.state_dict())
        torchs.load_state_dict(ours.state_dict())
        assert {name for name in vars(torchs) if not name.startswith("_")} <= set(vars(ours))
    assert [[tuple(tensor.shape) for tensor in layer] for layer in both[0].all_weights] == [
        [tuple(tensor.shape) for tensor in layer] for layer in both[1].all_weights
    ]
    assert tu.nn.RNN(3, 4, 1, "relu").nonlinearity == "relu"  # the fourth positional argument, as in torch
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        tu.nn.RNN(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
        tu.nn.RNN(3, 4, nonlinearity="gelu")
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: gelu"):
        tu.nn.RNNCell(3, 4, nonlinearity="gelu")(torch.randn(1, 3))


@pytest.mark.parametrize("nonlinearity", ["relu", "sigmoid", "identity"])
def test_pickled_and_copied(nonlinearity: str) -> None:
    x = torch.randn(2, 2, 3)
    module = torch.nn.ModuleList(
        [
            tu.nn.RNN(3, 4, nonlinearity=nonlinearity, engine="torch"),
            tu.nn.RNNCell(3, 4, nonlinearity=nonlinearity, engine="torch"),
        ]
    )
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(module)):
        assert_exact(other[0](x)[0].detach(), module[0](x)[0].detach())
        assert_exact(other[1](x[0]).detach(), module[1](x[0]).detach())
        assert other[0].engine == other[1].engine == "torch"


def test_parametrized_weights_are_read() -> None:
    class Halved(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    module, x = tu.nn.RNN(3, 4, engine="torch"), torch.randn(2, 2, 3)
    expected = torch.func.functional_call(module, {"weight_hh_l0": module.weight_hh_l0 / 2}, (x,))[0]
    parametrize.register_parametrization(module, "weight_hh_l0", Halved())
    torch.testing.assert_close(module(x)[0], expected)


def test_a_module_swapped_in_place_and_under_override_is_served_by_an_engine() -> None:
    for torchs in (torch.nn.RNN(3, 4, 2, bidirectional=True), torch.nn.RNNCell(3, 4)):
        x = torch.randn(2, 3) if isinstance(torchs, torch.nn.RNNCell) else torch.randn(5, 2, 3)
        expected = torchs(x)
        with tu.use_engine("torch"):
            with tu.override():
                torch.testing.assert_close(torchs(x), expected)
            replaced = copy.deepcopy(torchs)
            tu.replace(replaced)
            assert type(replaced) in (tu.nn.RNN, tu.nn.RNNCell)
            torch.testing.assert_close(replaced(x), expected)


@pytest.mark.skipif(not any(target.engine == "cuda" for target in TARGETS), reason="the emulated kernels are not built")
@pytest.mark.parametrize("variant", ["single_block", "cluster", "grid_exchange", "step"])
def test_torchs_samples_through_every_variant(variant: str) -> None:
    """Checks, in float64, values and non-contiguous tensors of each sample that a variant accepts, and derivatives of some."""
    target = next(target for target in TARGETS if target.engine == "cuda")
    served = 0
    for sample in _samples("RNN", target, torch.float64):
        ours, torchs = _pair("RNN", sample, target, torch.float64)
        args = sample.forward_input.args
        with planning.force("rnn", variant):
            try:
                results = _run(ours, args)
            except RuntimeError as error:
                if "no variant takes" not in str(error):
                    raise
                continue
            served += 1
            for mine, theirs in zip(results, _run(torchs, args), strict=True):
                torch.testing.assert_close(mine, theirs)
            _check_non_contiguous(ours, args)
            if served % 9 == 1:  # every ninth, to save time
                _check_derivatives(ours, args)
    assert served >= 16
