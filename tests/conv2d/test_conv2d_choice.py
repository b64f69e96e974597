"""Which variant, tile and splits a convolution is computed with: by the table of measurements, by the model, or as forced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_unroll as tu
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import conv2d, conv2d_call
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels.cuda.conv2d import choice, variants
from torch_unroll.kernels.cuda.conv2d.choice import VARIANTS, Choice, candidates, choose, predict, problem_key
from torch_unroll.kernels.cuda.conv2d.portable import IMPLICIT, TENSOR, Tensor
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem
from torch_unroll.kernels.hardware import Device

H200 = Device(132, (9, 0), 227 << 10, 50 << 20, "NVIDIA H200")
A100 = Device(108, (8, 0), 163 << 10, 40 << 20, "NVIDIA A100-SXM4-80GB")
DIRECTIONS = ("fprop", "dgrad", "wgrad")
needs_emulator = pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")


def problem(
    dtype: str = "bfloat16",
    N: int = 32,
    C: int = 64,
    H: int = 56,
    K: int = 64,
    R: int = 3,
    stride: int = 1,
    groups: int = 1,
    precision: str = "ieee",
    nchw: str = "",
) -> Conv2dProblem:
    """A convolution of square planes; the tensors named in `nchw` are contiguous, the others channels_last."""
    pad = R // 2
    P = (H + 2 * pad - R) // stride + 1

    def strides(name: str, channels: int, extent: int) -> tuple[int, int, int, int]:
        plane = extent * extent
        return (channels * plane, *((plane, extent, 1) if name in nchw else (1, extent * channels, channels)))  # type: ignore[return-value]

    return Conv2dProblem(
        *(dtype, N, C, H, H, K, R, R, P, P, (stride, stride), (pad, pad), (1, 1), groups),
        *(strides("x", C, H), strides("w", C // groups, R), strides("y", K, P), precision),
    )


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Replaces the measurements by those it is called with."""
    monkeypatch.setattr(choice, "TABLE", tmp_path / "choices.json")

    def write(devices: dict[str, dict[str, list[object]]]) -> None:
        choice.TABLE.write_text(json.dumps({"devices": devices}))
        choice.measured.cache_clear()
        choose.cache_clear()

    yield write
    choice.measured.cache_clear()
    choose.cache_clear()


@pytest.fixture
def workspace() -> Iterator[Any]:
    before = variants.workspace_limit
    yield choice.set_workspace_limit
    choice.set_workspace_limit(before)


@pytest.mark.parametrize(
    ("dtype", "precision", "groups", "variant", "reason"),
    [
        ("float16", "ieee", 1, "tensor", None),
        ("bfloat16", "tf32", 4, "tensor", None),
        ("float32", "tf32", 1, "tensor", None),
        ("float32", "ieee", 1, "implicit", "fp32_precision"),
        ("float64", "ieee", 1, "implicit", "float64"),
        ("float16", "ieee", 32, "implicit", "groups of 1 and 1 channels"),
    ],
)
def test_the_variant_and_its_reasons(dtype: str, precision: str, groups: int, variant: str, reason: str | None) -> None:
    of = problem(dtype, N=2, C=32, H=8, K=32, R=1, groups=groups, precision=precision)
    chosen = choose("fprop", of, A100)
    assert chosen.choice.variant == variant
    passed_over = dict(chosen.passed_over)
    assert "tensor" not in passed_over if reason is None else reason in passed_over["tensor"]


def test_a_plane_too_large_for_the_indices_is_refused_by_all() -> None:
    huge = problem()._replace(H=2**15, W=2**15, x_strides=(2**36, 1, 2**21, 64))
    with pytest.raises(
        RuntimeError,
        match=r"conv2d_fprop: no variant takes .* implicit: input: expected planes of fewer than 2\^30 elements, got 32768×32768",
    ):
        choose("fprop", huge, H200)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_candidates_are_distinct_and_each_is_predicted(direction: str) -> None:
    for of in (problem(), problem(N=1, C=512, H=7, K=512), problem(C=3, R=7, stride=2, nchw="x"), problem("float64", groups=2)):
        for device in (H200, A100):
            found = candidates(direction, of, device)
            assert len(set(found)) == len(found)
            for each in found:
                prediction = predict(each, direction, of, device)
                assert prediction.seconds > 0
                assert 0 < prediction.share < 1
                assert prediction.bound in ("products", "bytes", "launches")
                assert not prediction.measured


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_images_of_few_tiles_are_split_and_others_are_not(direction: str) -> None:
    chosen = choose(direction, problem(C=512, H=7, K=512), H200)
    assert chosen.choice.splits > 1
    one = predict(chosen.choice._replace(splits=1), direction, problem(C=512, H=7, K=512), H200)
    assert chosen.prediction.seconds < one.seconds
    assert choose(direction, problem(N=1, C=512, H=7, K=512), H200).choice.splits > 1
    assert choose(direction, problem(), H200).choice.splits == 1
    assert choose(direction, problem(), H200).prediction.workspace_bytes == 0


def test_splits_that_gain_little_are_not_worth_a_second_kernel() -> None:
    of = problem("float16", H=8)
    found = {each: predict(each, "fprop", of, A100).seconds for each in candidates("fprop", of, A100)}
    fastest = min(found, key=found.__getitem__)
    assert fastest.splits > 1
    assert choose("fprop", of, A100).choice == fastest._replace(splits=1)


@pytest.mark.parametrize(("C", "K", "tile"), [(256, 256, "128x128"), (32, 32, "64x64")])
def test_narrow_products_take_the_small_tile(C: int, K: int, tile: str) -> None:
    assert choose("fprop", problem(C=C, K=K), A100).choice == Choice("tensor", tile, 1)


def test_an_order_of_preference_yields_only_to_a_clear_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(Tensor):
        name = "twin"
        factor = 1.0

        def rate(self, *of: Any) -> float:
            return self.factor * super().rate(*of)

    twin = Twin()
    monkeypatch.setitem(VARIANTS, "fprop", (TENSOR, twin, IMPLICIT))
    for factor, expected in ((1.1, "tensor"), (3.0, "twin")):
        twin.factor = factor
        choose.cache_clear()
        chosen = choose("fprop", problem(C=256, K=256), A100)
        assert chosen.choice.variant == expected
    assert dict(chosen.passed_over) == {"tensor": "twin is predicted to be more than 1.25 times as fast"}
    choose.cache_clear()


# ---- forced --------------------------------------------------------------------------------------------------------------


def test_a_forced_variant_takes_its_own_best() -> None:
    chosen = choose("fprop", problem(), H200, "implicit")
    assert chosen.choice.variant == "implicit"
    assert ("tensor", "implicit is asked for") in chosen.passed_over


def test_a_forced_choice_is_followed_as_far_as_depth_and_workspace_go(workspace: Any) -> None:
    of = problem("float32", N=1, C=8, H=7, K=8, R=3, precision="tf32")
    assert choose("fprop", of, H200, Choice("tensor", "64x64", 2)).choice == Choice("tensor", "64x64", 2)
    assert choose("fprop", of, H200, Choice("tensor", "64x64", 99)).choice.splits == 5  # 72 taps, 16 a step
    workspace(2 * 3 * 49 * 8 * 4)
    assert choose("fprop", of, H200, Choice("tensor", "64x64", 99)).choice.splits == 3
    workspace(0)
    assert choose("fprop", of, H200, Choice("tensor", "64x64", 99)).choice.splits == 1


def test_a_forced_tile_that_there_is_not_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"tensor has tiles 128x128, 64x64 for .*, not 256x64"):
        choose("fprop", problem(), H200, Choice("tensor", "256x64", 1))


# ---- the table -----------------------------------------------------------------------------------------------------------


def test_the_shipped_table_has_what_choices_need() -> None:
    for entries in json.loads(choice.TABLE.read_text())["devices"].values():
        for key, (variant, tile, splits, microseconds) in entries.items():
            assert variant in {each.name for each in VARIANTS[key.partition("/")[0]]}
            assert Choice(variant, tile, splits).splits > 0
            assert microseconds > 0


def test_keys() -> None:
    assert problem_key("fprop", problem(stride=2)) == (
        "fprop/bfloat16/ieee/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,P=28,Q=28,stride=2x2,pad=1x1,dilation=1x1,groups=1"
    )
    assert "/nchw/" in str(problem_key("dgrad", problem(nchw="xwy")))
    assert "/nchw-channels_last-channels_last/" in str(problem_key("dgrad", problem(nchw="x")))
    assert "/channels_last/" in str(problem_key("dgrad", problem(R=1, nchw="w")))  # 1x1 filters have no layout
    assert problem_key("fprop", problem()._replace(x_aligned=False)) is None
    assert problem_key("fprop", problem()._replace(x_strides=(1, 2, 3, 4))) is None


def test_a_hit(table: Any) -> None:
    slow = Choice("explicit", "64x64", 1)
    table({"NVIDIA H200": {problem_key("fprop", problem()): [*slow, 12.5]}})
    chosen = choose("fprop", problem(), H200)
    assert chosen.choice == slow
    assert chosen.prediction.measured
    assert chosen.prediction.seconds == pytest.approx(12.5e-6)
    assert chosen.prediction.share == pytest.approx(2 * 32 * 56**2 * 64 * 576 / 12.5e-6 / 989e12, rel=0.01)
    assert dict(chosen.passed_over)["tensor"] == "explicit was measured to be fastest"


def test_a_miss_and_a_device_without_entries_go_by_the_model(table: Any) -> None:
    table({"NVIDIA H200": {problem_key("fprop", problem()): ["explicit", "64x64", 1, 12.5]}})
    for of, device in (
        (problem(N=31), H200),
        (problem(), A100),
        (problem(), replace(H200, name="")),
        (problem()._replace(x_aligned=False), H200),
    ):
        chosen = choose("fprop", of, device)
        assert chosen.choice.variant != "explicit"
        assert not chosen.prediction.measured


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (["hopper", "128x256", 1, 9.0], "no variant hopper takes this problem"),
        (["tensor", "64x64", 1, 9.0], "no variant tensor takes this problem"),
        (["implicit", "32x32", 1, 9.0], "implicit has no tile 32x32 here"),
        (["implicit", "64x64", 500, 9.0], "the workspace has room for 72 of 500 splits"),
    ],
)
def test_an_entry_that_cannot_be_followed_is_passed_over(table: Any, entry: list[Any], reason: str) -> None:
    of = problem("float32", N=1, C=128, H=7)
    table({"NVIDIA H200": {problem_key("fprop", of): entry}})
    chosen = choose("fprop", of, H200)
    assert chosen.choice.variant == "implicit"
    assert not chosen.prediction.measured
    assert (f"{Choice(*entry[:3])} (measured)", reason) in chosen.passed_over


def test_an_entry_of_another_variant_says_nothing_of_a_forced_one(table: Any) -> None:
    table({"NVIDIA H200": {problem_key("fprop", problem()): ["explicit", "64x64", 1, 12.5]}})
    assert not choose("fprop", problem(), H200, "implicit").prediction.measured
    assert choose("fprop", problem(), H200, "explicit").prediction.measured


# ---- workspace -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_splits_leave_the_workspace_its_limit(workspace: Any, direction: str) -> None:
    of = problem(C=512, H=7, K=512)
    assert max(each.splits for each in candidates(direction, of, A100)) > 1
    workspace(1)
    assert {each.splits for each in candidates(direction, of, A100)} == {1}
    assert choose(direction, of, A100).choice.splits == 1
    workspace(256 << 20)
    assert choose(direction, of, A100).choice.splits > 1


@needs_emulator
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float64, "ieee")])
def test_the_workspace_is_what_was_told(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, precision: str, groups: int, stride: int, layout: torch.memory_format
) -> None:
    x, w = torch.zeros(2, 20, 9, 9, dtype=dtype), torch.zeros(12, 20 // groups, 3, 3, dtype=dtype)
    dy = torch.zeros(2, 12, (9 - 3) // stride + 1, (9 - 3) // stride + 1, dtype=dtype)
    x, w, dy = (each.contiguous(memory_format=layout) for each in (x, w, dy))
    geometry = Conv2dGeometry((stride, stride), (0, 0, 0, 0), (1, 1), groups)
    calls: dict[str, Any] = {
        "fprop": lambda: conv2d.conv2d_fprop(cuda.LAUNCHER, x, w, None, geometry, precision),
        "dgrad": lambda: conv2d.conv2d_dgrad(cuda.LAUNCHER, dy, w, (9, 9), geometry, precision),
        "wgrad": lambda: conv2d.conv2d_wgrad(cuda.LAUNCHER, dy, x, (3, 3), geometry, precision),
    }
    call = conv2d_call.Call(cuda.LAUNCHER, x, w, dy, geometry, precision)
    for direction, run in calls.items():
        for each in candidates(direction, call.problem, call.device):
            for splits in (each.splits, 2):
                monkeypatch.setattr(conv2d, "forced", each._replace(splits=splits))
                with recording() as record:
                    run()
                chosen = record.choices[f"conv2d_{direction}"]
                told = chosen.prediction.workspace_bytes
                assert record.workspace_bytes == told, chosen


def test_the_public_limit_holds_at_once_and_within_a_block_only(workspace: Any) -> None:
    before = variants.workspace_limit
    of = problem(C=512, H=7, K=512)
    assert choose("fprop", of, H200).choice.splits > 1
    with tu.conv2d_workspace(0):
        assert variants.workspace_limit == 0
        assert choose("fprop", of, H200).choice.splits == 1
        with tu.conv2d_workspace(1 << 20):
            assert variants.workspace_limit == 1 << 20
        assert variants.workspace_limit == 0
    assert variants.workspace_limit == before
    assert choose("fprop", of, H200).choice.splits > 1
    tu.conv2d_workspace(1 << 30)
    assert variants.workspace_limit == 1 << 30


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
    before = variants.workspace_limit
    with pytest.raises(error, match=message):
        tu.conv2d_workspace(limit)
    assert variants.workspace_limit == before


# ---- explain -------------------------------------------------------------------------------------------------------------


@needs_emulator
def test_explain_tells_what_was_chosen_for_each_direction(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = replace(cuda.LAUNCHER.properties(torch.device("cpu")), capability=(8, 0), name="NVIDIA H200")
    monkeypatch.setattr(cuda.ENGINE.launcher, "properties", lambda device: named)
    x, w = (
        torch.randn(size).bfloat16().contiguous(memory_format=torch.channels_last) for size in ((1, 64, 7, 7), (64, 64, 3, 3))
    )
    of = conv2d_call.Call(cuda.LAUNCHER, x, w, x, Conv2dGeometry((1, 1), (1, 1, 1, 1), (1, 1), 1), "ieee").problem
    table({"NVIDIA H200": {problem_key("fprop", of): ["tensor", "64x64", 3, 12.5]}})
    explanation = tu.explain("conv2d", x.requires_grad_(), w.requires_grad_(), padding=1, engine="cuda")
    assert list(explanation.choices) == ["conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"]
    assert explanation.choices["conv2d_fprop"].choice == Choice("tensor", "64x64", 3)
    assert explanation.choices["conv2d_fprop"].prediction.measured
    assert not explanation.choices["conv2d_dgrad"].prediction.measured
    assert explanation.workspace_bytes == max(each.prediction.workspace_bytes for each in explanation.choices.values())
    text = str(explanation)
    assert "conv2d_fprop: tensor 64x64, 3 splits: measured 12.5 µs, " in text
    assert "; workspace 37632 B" in text
    assert "conv2d_dgrad: tensor 64x64" in text
    assert ": predicted " in text
    assert "of the dense rate, bound by " in text
