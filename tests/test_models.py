"""The lecture's networks: parameter counts as published, torchvision's names, and the same numbers on either namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll import models
from torch_unroll.testing import Target, targets


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


PUBLISHED = {
    "lenet5": (models.lenet5, 61_706),
    "alexnet grouped": (lambda nn: models.alexnet(form="grouped", nn=nn), 60_965_224),
    "alexnet torchvision": (models.alexnet, 61_100_840),
    "googlenet": (models.googlenet, 6_624_904),
    "resnet18": (models.resnet18, 11_689_512),
    "resnet34": (models.resnet34, 21_797_672),
    "resnet50": (models.resnet50, 25_557_032),
    "densenet121": (models.densenet121, 7_978_856),
    "densenet_bc_100_12": (models.densenet_bc_100_12, 769_162),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    make, count = PUBLISHED[name]
    with torch.device("meta"):
        assert _count(make(nn=tu.nn)) == _count(make(nn=nn)) == count


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85)])
def test_cifar_counts(depth: int, millions: float) -> None:
    residual, plain = (models.cifar_resnet(depth, residual=each) for each in (True, False))
    assert round(_count(residual) / 1e6, 2) == millions
    assert _count(residual) == _count(plain)  # the shortcuts have none


@pytest.mark.parametrize(
    ("without", "millions"),
    [(("fc7",), 16), (("fc6", "fc7"), 50), (("conv3", "conv4"), 1), (("conv3", "conv4", "fc6", "fc7"), 51)],
)
def test_ablations_remove_what_the_lecture_says(without: tuple[str, ...], millions: int) -> None:
    with torch.device("meta"):
        removed = _count(models.alexnet(form="grouped")) - _count(models.alexnet(form="grouped", without=without))
    assert abs(removed / 1e6 - millions) < 1


# Keys and shapes of torchvision's published weights, by their first and last entries and a digest of all names.
TORCHVISION = {
    "alexnet": (models.alexnet, 16, "features.0.weight", (64, 3, 11, 11), "classifier.6.bias", (1000,)),
    "googlenet": (lambda: models.googlenet(heads=True), 0, "conv1.conv.weight", (64, 3, 7, 7), "fc.bias", (1000,)),
    "resnet18": (models.resnet18, 122, "conv1.weight", (64, 3, 7, 7), "fc.bias", (1000,)),
    "resnet50": (models.resnet50, 320, "conv1.weight", (64, 3, 7, 7), "fc.bias", (1000,)),
    "densenet121": (models.densenet121, 727, "features.conv0.weight", (64, 3, 7, 7), "classifier.bias", (1000,)),
}
SOME_KEYS = {
    "alexnet": {"features.3.weight": (192, 64, 5, 5), "features.10.bias": (256,), "classifier.1.weight": (4096, 9216)},
    "googlenet": {
        "inception3a.branch2.1.conv.weight": (128, 96, 3, 3),
        "inception5b.branch4.1.bn.running_mean": (128,),
        "aux2.fc1.weight": (1024, 2048),
    },
    "resnet18": {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.num_batches_tracked": ()},
    "resnet50": {"layer1.0.downsample.1.weight": (256,), "layer3.5.conv3.weight": (1024, 256, 1, 1)},
    "densenet121": {
        "features.denseblock3.denselayer24.conv2.weight": (32, 128, 3, 3),
        "features.transition2.norm.running_var": (512,),
        "features.norm5.weight": (1024,),
    },
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_keys(name: str) -> None:
    make, count, first, first_shape, last, last_shape = TORCHVISION[name]
    with torch.device("meta"):
        state = make().state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    keys = list(shapes)
    assert count in (0, len(keys))
    assert (keys[0], shapes[keys[0]]) == (first, first_shape)
    assert (keys[-1], shapes[keys[-1]]) == (last, last_shape)
    assert SOME_KEYS[name].items() <= shapes.items()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_outputs(name: str) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    theirs = getattr(torchvision.models, name)(weights=None, **options).eval()
    ours = TORCHVISION[name][0]().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(x), theirs(x))


Make = Callable[[Any], nn.Module]
SMALL: dict[str, tuple[Make, tuple[int, ...]]] = {
    "lenet5": (lambda nn: models.lenet5(nn=nn), (2, 1, 32, 32)),
    "alexnet": (lambda nn: models.alexnet(5, "grouped", ("fc6", "fc7"), nn=nn), (1, 3, 63, 63)),
    "googlenet": (lambda nn: models.googlenet(5, nn=nn), (2, 3, 64, 64)),
    "resnet18": (lambda nn: models.resnet18(5, nn=nn), (2, 3, 64, 64)),
    "resnet50": (lambda nn: models.resnet50(5, nn=nn), (2, 3, 64, 64)),
    "plain-20": (lambda nn: models.cifar_resnet(20, residual=False, nn=nn), (2, 3, 8, 8)),
    "residual-20": (lambda nn: models.cifar_resnet(20, nn=nn), (2, 3, 8, 8)),
    "densenet121": (lambda nn: models.densenet121(5, nn=nn), (2, 3, 64, 64)),
    "densenet_bc_100_12": (lambda nn: models.densenet_bc_100_12(5, nn=nn), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("target", targets("conv2d"), ids=str)
def test_outputs_and_gradients_agree(name: str, target: Target) -> None:
    make, shape = SMALL[name]
    ours, theirs = make(tu.nn).to(target.device).double(), make(nn).to(target.device).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64, device=target.device)

    def results(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()]), *model.buffers()]

    with tu.use_engine(target.engine):
        found = results(ours)
    for mine, torchs in zip(found, results(theirs), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-9)


class TestDenseBlock:
    """The buffered form against the concatenating one."""

    @staticmethod
    def _block(depth: int, buffered: bool) -> models.densenet.DenseBlock:
        torch.manual_seed(0)
        return models.densenet.DenseBlock(depth, 8, 4, 4, buffered, nn=nn).double()

    @pytest.mark.parametrize("training", [True, False])
    def test_same_numbers(self, training: bool) -> None:
        results = []
        for buffered in (True, False):
            block = self._block(4, buffered).train(training)
            x = torch.linspace(-1, 1, 2 * 8 * 25, dtype=torch.float64).view(2, 8, 5, 5).requires_grad_()
            y = block(x)
            results.append([y, *torch.autograd.grad(y.sin().sum(), [x, *block.parameters()]), *block.buffers()])
        for buffered, concatenated in zip(*results, strict=True):
            torch.testing.assert_close(buffered, concatenated)

    def test_frozen_parameters_get_no_gradient(self) -> None:
        block = self._block(2, True)
        block.denselayer1.conv1.weight.requires_grad_(False)
        block(torch.randn(1, 8, 4, 4, dtype=torch.float64)).sum().backward()
        assert block.denselayer1.conv1.weight.grad is None
        assert block.denselayer2.conv1.weight.grad is not None

    def test_what_is_saved_grows_linearly_with_depth(self) -> None:
        """Bytes that autograd keeps between forward and backward, counted once per storage."""

        def saved(depth: int, buffered: bool) -> int:
            storages: dict[int, int] = {}

            def keep(tensor: Tensor) -> Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            block = self._block(depth, buffered)
            x = torch.randn(4, 8, 16, 16, dtype=torch.float64, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                y = block(x)
            assert y.requires_grad
            return sum(storages.values())

        growth = {buffered: saved(32, buffered) / saved(16, buffered) for buffered in (True, False)}
        assert growth[True] < 2.1
        assert growth[False] > 2.5

    def test_autocast_rounds_twice_alike(self) -> None:
        gradients = []
        for buffered in (True, False):
            block = self._block(3, buffered).float()
            torch.manual_seed(0)
            x = torch.randn(2, 8, 5, 5, requires_grad=True)
            with torch.autocast("cpu", torch.bfloat16):
                y = block(x)
            gradients.append(torch.autograd.grad(y.float().sum(), [x, *block.parameters()]))
        for buffered, concatenated in zip(*gradients, strict=True):
            torch.testing.assert_close(buffered, concatenated, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.alexnet(without=("conv9",)), "without: expected layers of conv3, conv4, fc6, fc7, got conv9"),
        (lambda: models.alexnet(form="alex"), "form: expected one of torchvision, grouped, got 'alex'"),
        (lambda: models.cifar_resnet(21), r"depth: expected 6n \+ 2, such as 20 or 56, got 21"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
