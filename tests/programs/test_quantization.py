"""torch.ao's quantisation, eager and by FX graph, gives the same result for models of torch_unroll's modules as for models
of torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.quantization import quantization_mappings
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import torch_unroll as tu
from torch_unroll.nn.twins import OURS, TORCHS

pytestmark = pytest.mark.filterwarnings("ignore")

FUSED = [["conv1", "bn1", "relu1"], ["conv2", "bn2"], ["conv3", "relu3"], ["up", "bn4"]]
TRAINED = FUSED[:3]  # torch cannot fuse a transposed convolution for training


class Network(nn.Module):
    """Sequences of modules that torch fuses, one of them with groups and one with a transposed convolution; and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.conv3, self.relu3 = nn.Conv2d(4, 4, 1, bias=False), nn.ReLU()
        self.up, self.bn4 = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        x = self.relu3(self.conv3(self.pool(self.bn2(self.conv2(x)))))
        return self.dequant(self.bn4(self.up(x)))


class Recurrent(nn.Module):
    """A recurrent cell, which `quantize_dynamic` accepts, and a linear layer."""

    def __init__(self, nonlinearity: str = "tanh") -> None:
        super().__init__()
        self.cell, self.output = nn.RNNCell(3, 4, nonlinearity=nonlinearity), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.cell(x))


def _statically(model: nn.Module, x: Tensor, fuse: bool = True, is_reference: bool = False) -> nn.Module:
    model.eval()
    model = ao.fuse_modules(model, FUSED) if fuse else model
    model.qconfig = ao.default_qconfig
    prepared = ao.prepare(model)
    prepared(x)
    return ao.convert(prepared, is_reference=is_reference)


def _in_training(model: nn.Module, x: Tensor, fuse: bool = True) -> nn.Module:
    model.train()
    model = ao.fuse_modules_qat(model, TRAINED) if fuse else model
    model.qconfig = ao.default_qat_qconfig
    model.up.qconfig = model.bn1.qconfig = model.bn2.qconfig = model.bn4.qconfig = None
    prepared = ao.prepare_qat(model)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return prepared.eval()


WAYS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "statically": _statically,
    "statically, without fusion": lambda model, x: _statically(model, x, fuse=False),
    "to reference modules": lambda model, x: _statically(model, x, is_reference=True),
    "to reference modules, without fusion": lambda model, x: _statically(model, x, fuse=False, is_reference=True),
    "in training": _in_training,
    "in training, without fusion": lambda model, x: _in_training(model, x, fuse=False),
    "in training, and converted": lambda model, x: ao.convert(_in_training(model, x)),
}


def _classes(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("way", WAYS)
def test_a_replaced_model_is_quantised_as_torchs(way: str) -> None:
    theirs, x = Network(), torch.randn(4, 3, 8, 8)
    if way == "in training, and converted":  # layers without quantisation-aware training accept no integers
        theirs.up, theirs.bn4 = nn.Identity(), nn.Identity()
    ours = copy.deepcopy(theirs)
    tu.replace(ours)
    quantised, expected = WAYS[way](ours, x), WAYS[way](theirs, x)
    kept = {name for name, kind in _classes(quantised).items() if kind in TORCHS}
    assert kept == {name for name, kind in _classes(expected).items() if kind in OURS}
    tu.restore(quantised)
    assert _classes(quantised) == _classes(expected)
    for (key, tensor), torchs in zip(quantised.state_dict().items(), expected.state_dict().values(), strict=True):
        assert not isinstance(tensor, Tensor) or torch.equal(tensor, torchs), key
    if "reference" not in way:  # reference modules compute only inside graphs
        torch.testing.assert_close(quantised(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_fused_modules_stay_ours(training: bool) -> None:
    theirs, x = Network().train(training), torch.randn(4, 3, 8, 8)
    ours = copy.deepcopy(theirs)
    tu.replace(ours)
    fuse, lists = (ao.fuse_modules_qat, TRAINED) if training else (ao.fuse_modules, FUSED)
    fused, expected = fuse(ours, lists), fuse(theirs, lists)
    assert {name for name, kind in _classes(fused).items() if kind is tu.nn.Conv2d} == {
        name for name, kind in _classes(expected).items() if kind is nn.Conv2d
    }
    assert isinstance(fused.up, tu.nn.ConvTranspose2d)
    with tu.use_engine("torch"):
        torch.testing.assert_close(fused(x), expected(x))
    assert not tu.replace(fused).swapped


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_dynamically(nonlinearity: str) -> None:
    theirs, x = Recurrent(nonlinearity), torch.randn(5, 3)
    ours = copy.deepcopy(theirs)
    assert "torch_unroll.nn.RNNCell" in tu.replace(ours).notes["cell"]
    quantised, expected = ao.quantize_dynamic(ours, {tu.nn.RNNCell, nn.Linear}), ao.quantize_dynamic(theirs)
    assert _classes(quantised) == _classes(expected)
    torch.testing.assert_close(quantised(x), expected(x), rtol=0, atol=0)
    assert type(ours.cell) is tu.nn.RNNCell
    tu.restore(ours)
    torch.testing.assert_close(ao.quantize_dynamic(ours)(x), expected(x), rtol=0, atol=0)


def test_the_graph_mode_takes_a_restored_model() -> None:
    def quantised(model: nn.Module) -> Any:
        prepared = prepare_fx(model.eval(), ao.get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        return convert_fx(prepared)

    theirs, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(2, 3, 8, 8)
    ours = copy.deepcopy(theirs)
    tu.replace(ours)
    tu.restore(ours)
    results = quantised(ours), quantised(theirs)
    assert str(results[0].graph) == str(results[1].graph)
    torch.testing.assert_close(results[0](x), results[1](x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["STATIC_QUANT", "REFERENCE_STATIC_QUANT", "DYNAMIC_QUANT", "QAT"])
def test_every_module_that_torch_maps_has_its_entry(name: str) -> None:
    mapping = getattr(quantization_mappings, f"DEFAULT_{name}_MODULE_MAPPINGS")
    for kind in ("Conv2d", "ConvTranspose2d", "RNNCell"):
        theirs, ours = (mapping.get(getattr(space, kind)) for space in (nn, tu.nn))
        assert (ours is None) == (theirs is None)
        assert ours is None or issubclass(ours, theirs)


def test_torchs_refusals_stay() -> None:
    conv = nn.utils.parametrizations.weight_norm(tu.nn.Conv2d(3, 4, 3))
    model = nn.Sequential(conv, nn.BatchNorm2d(4))
    model.qconfig = ao.default_qconfig
    with pytest.raises(AssertionError, match="only works for Conv2d but got: ParametrizedConv2d"):
        ao.convert(ao.prepare(model.eval()))
    with pytest.raises(AssertionError, match="did not find fuser method"):
        ao.fuse_modules(nn.Sequential(tu.nn.Conv2d(3, 4, 3), nn.Tanh()), ["0", "1"])
