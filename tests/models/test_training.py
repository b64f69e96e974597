"""Two networks learn handwritten digits, and learn equally on the kernels and on the reference engine."""

from __future__ import annotations

import itertools

import pytest
import torch

from torch_unroll.engines import use_engine
from torch_unroll.testing import targets
from torch_unroll.training.digits import RECIPES, Digits, Training


def test_a_third_is_held_out(digits: Digits) -> None:
    assert (len(digits.images), len(digits.held_out_images)) == (1198, 599)
    pixels = torch.cat([digits.images, digits.held_out_images])
    assert pixels.shape == (1797, 8, 8)
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert torch.bincount(torch.cat([digits.digits, digits.held_out_digits])).min() > 170


@pytest.mark.parametrize("name", RECIPES)
def test_it_learns_the_digits(name: str, digits: Digits) -> None:
    with use_engine("torch"):
        *_, (loss, accuracy) = Training(RECIPES[name], digits).epochs()
    assert accuracy >= RECIPES[name].expected, f"{name}: held-out accuracy {accuracy:.1%} with loss {loss:.3f}"


@pytest.mark.parametrize("target", [target for target in targets("conv2d") if target.engine == "cuda"], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_the_kernels_learn_as_the_reference_does(name: str, target, digits: Digits) -> None:
    losses = {}
    for engine in ("torch", target.engine):
        with use_engine(engine):
            losses[engine] = list(itertools.islice(Training(RECIPES[name], digits, target.device).steps(), 3))
    assert losses[target.engine] == pytest.approx(losses["torch"], rel=0, abs=1e-4)
    assert len(set(losses["torch"])) == 3
