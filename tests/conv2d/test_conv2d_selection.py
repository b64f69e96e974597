"""Which variant, tile and splits compute a convolution: as forced, as measured, or as predicted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_unroll as tu
from tests.conv2d.problems import square_problem as problem
from tests.gpus import A100, H200
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import conv2d
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.engines.compiled.conv2d_workspace import set_workspace_limit, workspace_limit
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d.mma import MMA, Mma
from torch_unroll.kernels.cuda.conv2d.problem import DIRECTIONS, Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.simt import SIMT
from torch_unroll.kernels.cuda.conv2d.tile import Tile
from torch_unroll.kernels.cuda.conv2d.variants import MARGIN, SELECTORS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration, Prediction, Selected, Selector

needs_emulator = pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")


def choose(
    direction: str, convolution: Conv2dProblem, device: Device, forced: str | Configuration | None = None
) -> Selected[Conv2dProblem]:
    with planning.force("conv2d", forced):
        return SELECTORS[f"conv2d_{direction}"].select(convolution._replace(direction=direction), device)


def candidates(direction: str, convolution: Conv2dProblem, device: Device) -> list[Configuration]:
    return SELECTORS[f"conv2d_{direction}"].configurations(convolution._replace(direction=direction), device)


def predict(configuration: Configuration, direction: str, convolution: Conv2dProblem, device: Device) -> Prediction:
    return SELECTORS[f"conv2d_{direction}"].predict(convolution._replace(direction=direction), configuration, device)


def key(direction: str, convolution: Conv2dProblem) -> str | None:
    return SELECTORS[f"conv2d_{direction}"].key(convolution)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Returns a function that replaces the table of measurements."""
    path = tmp_path / "choices.json"
    monkeypatch.setattr(planning, "table_path", lambda op: path)

    def write(devices: dict[str, dict[str | None, list[object]]]) -> None:
        path.write_text(json.dumps({"devices": devices}))
        planning.forget()

    yield write
    planning.forget()


@pytest.fixture
def _limit_as_before() -> Iterator[None]:
    before = workspace_limit()
    yield
    set_workspace_limit(before)


@pytest.mark.parametrize(
    ("dtype", "precision", "groups", "variant", "reason"),
    [
        ("float16", "ieee", 1, "mma", None),
        ("bfloat16", "tf32", 4, "mma", None),
        ("float32", "tf32", 1, "mma", None),
        ("float32", "ieee", 1, "simt", "fp32_precision"),
        ("float64", "ieee", 1, "simt", "float64"),
        ("float16", "ieee", 32, "simt", "groups of 1 and 1 channels"),
    ],
)
def test_the_variant_and_its_reasons(dtype: str, precision: str, groups: int, variant: str, reason: str | None) -> None:
    convolution = problem(dtype, N=2, C=32, H=8, K=32, R=1, groups=groups, precision=precision)
    chosen = choose("fprop", convolution, A100)
    assert chosen.configuration.variant == variant
    passed_over = dict(chosen.passed_over)
    assert "mma" not in passed_over if reason is None else reason in passed_over["mma"]


def test_a_plane_too_large_for_the_indices_is_refused_by_all() -> None:
    huge = problem()._replace(H=2**15, W=2**15, x_strides=(2**36, 1, 2**21, 64))
    with pytest.raises(
        RuntimeError,
        match=r"conv2d_fprop: no variant takes .* simt: input: expected planes of fewer than 2\^30 elements, got 32768×32768",
    ):
        choose("fprop", huge, H200)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_candidates_are_distinct_and_each_is_predicted(direction: str) -> None:
    for convolution in (
        problem(),
        problem(N=1, C=512, H=7, K=512),
        problem(C=3, R=7, stride=2, nchw="x"),
        problem("float64", groups=2),
    ):
        for device in (H200, A100):
            configurations = candidates(direction, convolution, device)
            assert len(set(configurations)) == len(configurations)
            for configuration in configurations:
                prediction = predict(configuration, direction, convolution, device)
                assert prediction.seconds > 0
                assert 0 < prediction.share < 1
                assert prediction.bound in ("products", "bytes", "launches")
                assert not prediction.measured


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_images_of_few_tiles_are_split_and_others_are_not(direction: str) -> None:
    chosen = choose(direction, problem(C=512, H=7, K=512), H200)
    assert chosen.configuration.splits > 1
    one = predict(chosen.configuration._replace(splits=1), direction, problem(C=512, H=7, K=512), H200)
    assert chosen.prediction.seconds < one.seconds
    assert choose(direction, problem(N=1, C=512, H=7, K=512), H200).configuration.splits > 1
    assert choose(direction, problem(), H200).configuration.splits == 1
    assert choose(direction, problem(), H200).prediction.workspace_bytes == 0


def test_splits_that_gain_little_are_not_worth_a_second_kernel() -> None:
    small = problem("float16", H=8)
    seconds = {candidate: predict(candidate, "fprop", small, A100).seconds for candidate in candidates("fprop", small, A100)}
    fastest = min(seconds, key=seconds.__getitem__)
    assert fastest.splits > 1
    assert choose("fprop", small, A100).configuration == fastest._replace(splits=1)


@pytest.mark.parametrize(("C", "K", "tile"), [(256, 256, "128x128"), (32, 32, "64x64")])
def test_narrow_products_take_the_small_tile(C: int, K: int, tile: str) -> None:
    assert choose("fprop", problem(C=C, K=K), A100).configuration == Configuration("mma", tile, 1)


def test_an_order_of_preference_yields_only_to_a_clear_prediction() -> None:
    class Twin(Mma):
        name = "twin"

        def __init__(self, factor: float):
            self.factor = factor

        def rate(self, convolution: Conv2dProblem, tile: Tile, device: Device) -> float:
            return self.factor * super().rate(convolution, tile, device)

    for factor, expected in ((1.1, "mma"), (3.0, "twin")):
        selector = Selector("conv2d", "conv2d_fprop", (MMA, Twin(factor), SIMT), margin=MARGIN)
        chosen = selector.select(problem(C=256, K=256), A100)
        assert chosen.configuration.variant == expected
    assert dict(chosen.passed_over) == {"mma": "twin is predicted to be more than 1.25 times as fast"}


# ---- forced --------------------------------------------------------------------------------------------------------------


def test_a_forced_variant_takes_its_own_best() -> None:
    chosen = choose("fprop", problem(), H200, "simt")
    assert chosen.configuration.variant == "simt"
    assert ("mma", "simt is asked for") in chosen.passed_over


def test_a_forced_configuration_is_followed_as_far_as_depth_and_workspace_go() -> None:
    narrow = problem("float32", N=1, C=8, H=7, K=8, R=3, precision="tf32")
    two, many = Configuration("mma", "64x64", 2), Configuration("mma", "64x64", 99)
    assert choose("fprop", narrow, H200, two).configuration == two
    assert choose("fprop", narrow, H200, many).configuration.splits == 5  # a depth of 72 makes 5 steps of 16
    assert choose("fprop", narrow._replace(workspace_limit=2 * 3 * 49 * 8 * 4), H200, many).configuration.splits == 3
    assert choose("fprop", narrow._replace(workspace_limit=0), H200, many).configuration.splits == 1


# ---- the table -----------------------------------------------------------------------------------------------------------


def test_the_shipped_table_has_what_choices_need() -> None:
    for entries in json.loads(planning.table_path("conv2d").read_text())["devices"].values():
        for entry, (variant, tile, splits, microseconds) in entries.items():
            assert variant in SELECTORS[entry.partition("/")[0]].by_name
            assert Configuration(variant, tile, splits).splits > 0
            assert microseconds > 0


def test_keys() -> None:
    assert key("fprop", problem(stride=2)) == (
        "conv2d_fprop/bfloat16/ieee/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,P=28,Q=28,stride=2x2,pad=1x1,dilation=1x1,groups=1"
    )
    assert "/nchw/" in str(key("dgrad", problem(nchw="xwy")))
    assert "/nchw-channels_last-channels_last/" in str(key("dgrad", problem(nchw="x")))
    assert "/channels_last/" in str(key("dgrad", problem(R=1, nchw="w")))  # 1x1 filters are the same in both layouts
    assert key("fprop", problem()._replace(x_aligned=False)) is None
    assert key("fprop", problem()._replace(x_strides=(1, 2, 3, 4))) is None


def test_a_hit(table: Any) -> None:
    slow = Configuration("im2col", "64x64", 1)
    table({H200.name: {key("fprop", problem()): [*slow, 12.5]}})
    chosen = choose("fprop", problem(), H200)
    assert chosen.configuration == slow
    assert chosen.prediction.measured
    assert chosen.prediction.seconds == pytest.approx(12.5e-6)
    assert chosen.prediction.share == pytest.approx(2 * 32 * 56**2 * 64 * 576 / 12.5e-6 / 989e12, rel=0.01)
    assert dict(chosen.passed_over)["mma"] == "im2col was measured to be fastest"


def test_a_miss_and_a_device_without_entries_go_by_the_model(table: Any) -> None:
    table({H200.name: {key("fprop", problem()): ["im2col", "64x64", 1, 12.5]}})
    for convolution, device in (
        (problem(N=31), H200),
        (problem(), A100),
        (problem(), replace(H200, name="")),
        (problem()._replace(x_aligned=False), H200),
    ):
        chosen = choose("fprop", convolution, device)
        assert chosen.configuration.variant != "im2col"
        assert not chosen.prediction.measured


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (["wgmma", "128x256", 1, 9.0], "wgmma does not take this problem"),
        (["mma", "64x64", 1, 9.0], "mma does not take this problem"),
        (["simt", "32x32", 1, 9.0], "simt has no tile 32x32 here"),
        (["simt", "64x64", 500, 9.0], "the workspace has room for 72 of 500 splits"),
    ],
)
def test_an_entry_that_cannot_be_followed_is_passed_over(table: Any, entry: list[Any], reason: str) -> None:
    convolution = problem("float32", N=1, C=128, H=7)
    table({H200.name: {key("fprop", convolution): entry}})
    chosen = choose("fprop", convolution, H200)
    assert chosen.configuration.variant == "simt"
    assert not chosen.prediction.measured
    assert (f"{Configuration(*entry[:3])} (measured)", reason) in chosen.passed_over


def test_an_entry_of_another_variant_says_nothing_of_a_forced_one(table: Any) -> None:
    table({H200.name: {key("fprop", problem()): ["im2col", "64x64", 1, 12.5]}})
    assert not choose("fprop", problem(), H200, "simt").prediction.measured
    assert choose("fprop", problem(), H200, "im2col").prediction.measured


# ---- workspace -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_splits_leave_the_workspace_its_limit(direction: str) -> None:
    few_tiles = problem(C=512, H=7, K=512)
    assert max(candidate.splits for candidate in candidates(direction, few_tiles, A100)) > 1
    without_room = few_tiles._replace(workspace_limit=1)
    assert {candidate.splits for candidate in candidates(direction, without_room, A100)} == {1}
    assert choose(direction, without_room, A100).configuration.splits == 1
    assert choose(direction, few_tiles, A100).configuration.splits > 1


@needs_emulator
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float64, "ieee")])
def test_the_workspace_is_as_predicted(
    dtype: torch.dtype, precision: str, groups: int, stride: int, layout: torch.memory_format
) -> None:
    x, w = torch.zeros(2, 20, 9, 9, dtype=dtype), torch.zeros(12, 20 // groups, 3, 3, dtype=dtype)
    dy = torch.zeros(2, 12, (9 - 3) // stride + 1, (9 - 3) // stride + 1, dtype=dtype)
    x, w, dy = (tensor.contiguous(memory_format=layout) for tensor in (x, w, dy))
    geometry = Conv2dGeometry((stride, stride), (0, 0, 0, 0), (1, 1), groups)
    calls: dict[str, Any] = {
        "fprop": lambda: conv2d.conv2d_fprop(cuda.LAUNCHER, x, w, None, geometry, precision),
        "dgrad": lambda: conv2d.conv2d_dgrad(cuda.LAUNCHER, dy, w, (9, 9), geometry, precision),
        "wgrad": lambda: conv2d.conv2d_wgrad(cuda.LAUNCHER, dy, x, (3, 3), geometry, precision),
    }
    device = cuda.LAUNCHER.properties(x.device)
    for direction, run in calls.items():
        for candidate in candidates(direction, problem_of(direction, x, w, dy, geometry, precision), device):
            for splits in (candidate.splits, 2):
                with planning.force("conv2d", candidate._replace(splits=splits)), recording() as record:
                    run()
                selected = record.selections[f"conv2d_{direction}"]
                assert record.workspace_bytes == selected.prediction.workspace_bytes, selected


@needs_emulator
@pytest.mark.usefixtures("_limit_as_before")
def test_the_public_limit_holds_at_once_and_within_a_block_only() -> None:
    before = workspace_limit()
    x, w = (
        torch.zeros(size).bfloat16().contiguous(memory_format=torch.channels_last) for size in ((1, 512, 3, 3), (8, 512, 3, 3))
    )

    def splits() -> int:
        with recording() as record:
            tu.conv2d(x, w, engine="cuda")
        return record.selections["conv2d_fprop"].configuration.splits

    assert splits() > 1
    with tu.conv2d_workspace(0):
        assert workspace_limit() == 0
        assert splits() == 1
        with tu.conv2d_workspace(1 << 20):
            assert workspace_limit() == 1 << 20
        assert workspace_limit() == 0
    assert workspace_limit() == before
    assert splits() > 1
    tu.conv2d_workspace(1 << 30)
    assert workspace_limit() == 1 << 30


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, "limit: expected 0 or more bytes, got -1"),
        (1e9, TypeError, "limit: expected a number of bytes as int, got float"),
        (True, TypeError, "limit: expected a number of bytes as int, got bool"),
        ("64M", TypeError, "limit: expected a number of bytes as int, got str"),
    ],
)
def test_a_limit_that_is_none_is_refused_and_changes_nothing(limit: Any, error: type[Exception], message: str) -> None:
    before = workspace_limit()
    with pytest.raises(error, match=message):
        tu.conv2d_workspace(limit)
    assert workspace_limit() == before


# ---- explain -------------------------------------------------------------------------------------------------------------


@needs_emulator
def test_explain_shows_what_was_selected_for_each_direction(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = replace(cuda.LAUNCHER.properties(torch.device("cpu")), capability=(8, 0), name=H200.name)
    monkeypatch.setattr(cuda.ENGINE.launcher, "properties", lambda device: named)
    x, w = (
        torch.randn(size).bfloat16().contiguous(memory_format=torch.channels_last) for size in ((1, 64, 7, 7), (64, 64, 3, 3))
    )
    convolution = problem_of("fprop", x, w, x, Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1), "ieee")
    table({H200.name: {key("fprop", convolution): ["mma", "64x64", 3, 12.5]}})
    explanation = tu.explain("conv2d", x.requires_grad_(), w.requires_grad_(), padding=1, engine="cuda")
    assert list(explanation.selections) == ["conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"]
    assert explanation.selections["conv2d_fprop"].configuration == Configuration("mma", "64x64", 3)
    assert explanation.selections["conv2d_fprop"].prediction.measured
    assert not explanation.selections["conv2d_dgrad"].prediction.measured
    assert explanation.workspace_bytes == max(selected.prediction.workspace_bytes for selected in explanation.selections.values())
    text = str(explanation)
    assert "conv2d_fprop: mma 64x64, 3 splits: measured 12.5 µs, " in text
    assert "; workspace 37632 B" in text
    assert "conv2d_dgrad: mma 64x64" in text
    assert ": predicted " in text
    assert "of the dense rate, bound by " in text
