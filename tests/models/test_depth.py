"""Residual-20 learns faster than plain-56."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from torch_unroll.training import depth
from torch_unroll.training.digits import Digits


def test_the_residual_network_learns_faster_than_the_plain_one(digits: Digits) -> None:
    last = {name: list(islice(depth.losses(name, digits, 2), 36))[-9:] for name in ("residual-20", "plain-56")}
    mean = {name: sum(losses) / len(losses) for name, losses in last.items()}
    assert mean["residual-20"] < 0.6
    assert mean["plain-56"] > 1.5


@pytest.mark.usefixtures("digits")
def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "plots" / "depth.png"
    assert depth.main(["--networks", "residual-20", "--epochs", "1", "--plot", str(image)]) == 0
    assert image.stat().st_size > 5000
    assert "residual-20" in capsys.readouterr().out
