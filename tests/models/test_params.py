"""The computed numbers of parameters agree with the lecture's."""

from __future__ import annotations

import pytest

from torch_unroll.models import params


def test_three_ways_to_connect_an_image() -> None:
    assert list(params.connections().values()) == [16_000_000_000, 40_000_000, 1_000]


def test_the_command_prints_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert params.main([]) == 0
    printed = capsys.readouterr().out
    for text in ("16,000,000,000", "40,000,000", "61,706", "60,965,224", "fc6, fc7", "49.4"):
        assert text in printed


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        params.main(["--units", "5"])
    assert "at least one unit for each pixel" in capsys.readouterr().err
