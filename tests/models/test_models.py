"""The lecture's networks have the published numbers of parameters, torchvision's names, and equal results on both namespaces."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
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
    "resnext50_32x4d": (lambda nn: models.resnet50(groups=32, width_per_group=4, nn=nn), 25_028_904),
    "wide_resnet50_2": (lambda nn: models.resnet50(width_per_group=128, nn=nn), 68_883_240),
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
    residual, plain = (models.cifar_resnet(depth, residual=residual) for residual in (True, False))
    assert round(_count(residual) / 1e6, 2) == millions
    assert _count(residual) == _count(plain)  # shortcuts have no parameters


@pytest.mark.parametrize(
    ("without", "millions"),
    [(("fc7",), 16), (("fc6", "fc7"), 50), (("conv3", "conv4"), 1), (("conv3", "conv4", "fc6", "fc7"), 51)],
)
def test_ablations_remove_the_parameters_that_the_lecture_states(without: tuple[str, ...], millions: int) -> None:
    with torch.device("meta"):
        removed = _count(models.alexnet(form="grouped")) - _count(models.alexnet(form="grouped", without=without))
    assert abs(removed / 1e6 - millions) < 1


# How each network is made, the number of keys of torchvision's published weights, and the first and the last key, each with its
# shape.
TORCHVISION = {
    "alexnet": (models.alexnet, 16, "features.0.weight", (64, 3, 11, 11), "classifier.6.bias", (1000,)),
    "googlenet": (lambda: models.googlenet(aux_logits=True), 364, "conv1.conv.weight", (64, 3, 7, 7), "fc.bias", (1000,)),
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
    assert len(keys) == count
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
        our_results = results(ours)
    for mine, torchs in zip(our_results, results(theirs), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-9)


class TestTorchvisionsInterface:
    """The networks accept torchvision's keywords and state_dicts, and GoogLeNet names its outputs as torchvision's does."""

    @pytest.mark.parametrize(
        ("name", "keywords"),
        [
            ("alexnet", {"num_classes": 7, "dropout": 0.1}),
            ("resnet18", {"num_classes": 7, "zero_init_residual": True, "groups": 1, "width_per_group": 64}),
            ("resnet34", {"num_classes": 7, "zero_init_residual": True}),
            ("resnet50", {"num_classes": 7, "groups": 2, "width_per_group": 32}),
            ("densenet121", {"num_classes": 7}),
            ("googlenet", {"num_classes": 7, "aux_logits": True, "init_weights": True, "transform_input": True}),
            ("googlenet", {"num_classes": 7, "aux_logits": False, "init_weights": False, "dropout": 0.1, "dropout_aux": 0.2}),
        ],
    )
    def test_keywords(self, name: str, keywords: dict[str, Any]) -> None:
        with torch.device("meta"):
            model = getattr(models, name)(weights=None, **keywords)
        state = model.state_dict()
        assert state[list(state)[-1]].shape == (7,)

    def test_googlenets_outputs(self) -> None:
        model, x = models.googlenet(5, aux_logits=True, dropout=0.0, dropout_aux=0.0), torch.randn(2, 3, 64, 64)
        outputs = model(x)
        assert outputs._fields == ("logits", "aux_logits2", "aux_logits1")
        logits, upper, lower = outputs
        assert logits.shape == upper.shape == lower.shape == (2, 5)
        lower.sum().backward(retain_graph=True)
        assert model.inception4b.branch1.conv.weight.grad is None, "the head after inception4a reaches no layer above it"
        upper.sum().backward()
        assert model.inception4d.branch1.conv.weight.grad is not None
        assert model.inception4e.branch1.conv.weight.grad is None
        assert model.eval()(x).shape == (2, 5)
        assert isinstance(models.googlenet(5)(x), Tensor)

    def test_googlenets_auxiliary_heads_load_if_it_has_them(self) -> None:
        with torch.device("meta"):
            state = models.googlenet(aux_logits=True).state_dict()
        filled = {name: torch.full_like(value, 0.5, device="cpu") for name, value in state.items()}
        assert {"aux1.conv.conv.weight", "aux1.fc1.bias", "aux2.conv.bn.running_var", "aux2.fc2.weight"} <= filled.keys()
        models.googlenet(aux_logits=True).load_state_dict(filled, strict=True)
        plain = models.googlenet()
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"aux1.conv.conv.weight\""):
            plain.load_state_dict(filled)
        plain = models.googlenet(weights=filled)
        assert plain.aux1 is None
        assert plain.fc.weight.eq(0.5).all()

    @pytest.mark.parametrize("name", ["alexnet", "resnet18", "densenet121"])
    def test_weights_are_a_state_dict(self, name: str) -> None:
        make = partial(models.alexnet, without=("fc6", "fc7")) if name == "alexnet" else getattr(models, name)
        state = {key: torch.full_like(value, 0.25) for key, value in make(3).state_dict().items()}
        old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
        assert (old.keys() == state.keys()) == (name != "densenet121")
        assert all(torch.equal(value, state[key]) for key, value in make(3, weights=old).state_dict().items())
        with pytest.raises(TypeError, match="weights: expected a state_dict or None, got str"):
            make(3, weights="DEFAULT")
        with pytest.raises(RuntimeError, match="Missing key"):
            make(3, weights=dict(list(state.items())[1:]))

    def test_googlenets_input_is_brought_to_its_training_range(self) -> None:
        plain, transforming = models.googlenet(5).eval(), models.googlenet(5, transform_input=True).eval()
        transforming.load_state_dict(plain.state_dict())
        pixels, moments = torch.rand(1, 3, 64, 64), torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        normalised = (pixels - moments[0].view(3, 1, 1)) / moments[1].view(3, 1, 1)
        torch.testing.assert_close(transforming(normalised), plain(2 * pixels - 1))

    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_blocks_may_start_as_the_identity(self, name: str) -> None:
        model = getattr(models, name)(5, zero_init_residual=True)
        block, channels = model.layer1[1], {"resnet18": 64, "resnet50": 256}[name]
        x = torch.rand(2, channels, 4, 4)
        torch.testing.assert_close(block(x), x)

    def test_googlenets_initial_weights(self) -> None:
        weights = models.googlenet(init_weights=True).inception3a.branch2[1].conv.weight
        assert 0.0095 < weights.std() < 0.0105


class TestDenseBlock:
    """The buffered form is equivalent to the concatenating form."""

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

    def test_saved_memory_grows_linearly_with_depth(self) -> None:
        """Counts the bytes that autograd keeps between forward and backward, once for each storage."""

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
        (lambda: models.resnet18(groups=2), "groups, width_per_group: expected 1 and 64 for basic blocks, got 2 and 64"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
