"""The evidence of a wrong result suffices to explain it without a GPU: its content, the faults it reveals, the printed text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.exact.case import Case
from benchmarks.gpu.exact.conv2d import Conv2dCase
from benchmarks.gpu.exact.max_pool2d import MaxPool2dCase, UnfoldCase
from benchmarks.gpu.exact.rnn import RnnCase, RnnCellCase
from benchmarks.gpu.failures.evidence import MOST_KEPT, evidence, product_of, ranges
from benchmarks.gpu.failures.explain import explain
from benchmarks.gpu.failures.patterns import findings
from benchmarks.gpu.failures.products import Part
from benchmarks.gpu.failures.tiles import Failure
from tests.benchmarks.test_gpu_explain_faults import SMALL, TENSOR, conv
from torch_unroll.engines import cuda

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _emulator() -> None:
    if reason := cuda.refuses("conv2d", CPU, torch.float32):
        pytest.skip(reason)


def record(case: Case, wrong: list[tuple[str, Tensor, Tensor]]) -> dict[str, object]:
    """The record of a wrong case, as a result file contains it."""
    kept = [evidence(case, *result) for result in wrong]
    return json.loads(json.dumps({"outcome": "wrong", "case": case.as_json(), "detail": "", "evidence": kept}))


# ---- results that are computed without a kernel, for any case -----------------------------------------------------------------


def whole(case: Case, name: str, change: Callable[[Part, int], Tensor]) -> Tensor:
    """The result `name` of a case if `change(part, step)` computes the unrounded sums of each part of the product.

    `step` is the depth of a step. Without a fault, `change` would return `part.sums` plus the part's addend.
    """
    product, expected = product_of(case, name, operands=True), case.expected()[name]
    result = expected.flatten().clone()
    for part in product.parts:
        assert product.depth is not None
        values = product.finished(change(part, product.depth.step).double(), part.place, expected.dtype)
        result[part.place[part.place >= 0]] = values[part.place >= 0].to(expected.dtype)
    return result.view_as(expected)


def added(part: Part) -> Tensor:
    return torch.zeros(1, 1) if part.addend is None else part.addend


def without_a_step(part: Part, step: int) -> Tensor:
    """The sums without the second step, if there is one."""
    assert part.left is not None
    left = part.left.clone()
    left[:, step : 2 * step] = 0
    return left @ part.right.mT + added(part)  # type: ignore[union-attr]


def without_addend(part: Part, step: int) -> Tensor:
    return part.sums


def from_the_next_row(part: Part, step: int) -> Tensor:
    return part.sums.roll(-1, 0) + added(part)


def from_the_step_before(part: Part, step: int) -> Tensor:
    """The sums if the left operand of each step but the first is that of the step before."""
    assert part.left is not None
    left = torch.cat([part.left[:, :step], part.left[:, :-step]], 1)
    return left @ part.right.mT + added(part)  # type: ignore[union-attr]


def with_pieces_exchanged(part: Part, step: int) -> Tensor:
    """The sums with neighbouring pieces (0 and 1, 2 and 3, ...) exchanged in odd rows of the left operand."""
    assert part.left is not None
    piece = 16 // ITEM
    left = part.left.clone()
    left[1::2] = part.left[1::2].unflatten(1, (-1, 2, piece)).flip(2).flatten(1)
    return left @ part.right.mT + added(part)  # type: ignore[union-attr]


ITEM = 2
MADE = {
    "missing products": without_a_step,
    "missing bias": without_addend,
    "wrong row": from_the_next_row,
    "stale stage": from_the_step_before,
    "swizzle": with_pieces_exchanged,
}
CASES = (
    conv("fprop", "wgmma", "128x128", "bfloat16", "3x3", layout="nchw"),
    conv("fprop", "mma", "128x128", "float16", "stride 3, dilation 2", splits=3),
    conv("fprop", "simt", "64x64", "bfloat16", "groups"),
    conv("dgrad", "wgmma", "64x256", "float16", "dilation 1x3"),
    conv("dgrad", "mma", "64x64", "bfloat16", "40 channels"),
    conv("wgrad", "wgmma", "128x256", "bfloat16", "32 channels"),
    conv("wgrad", "mma", "64x64", "float16", "stride 2"),
    RnnCase("forward", "grid_exchange", "bfloat16", 2, 4, 32, 256, 1, False, "identity"),
    RnnCase("forward", "cluster", "float16", 2, 5, 20, 200, 2, True, "relu"),
    RnnCase("backward", "step", "bfloat16", 0, 3, 32, 512, 1, False, "identity"),
    RnnCellCase("forward", "bfloat16", 32, 128, 256, True, "relu"),
)


def applies(kind: str, case: Case, name: str) -> bool:
    """Whether the case can have a fault of the kind."""
    part, depth = product_of(case, name, operands=True).parts[0], product_of(case, name, operands=True).depth
    if kind == "missing bias":
        return part.addend is not None
    if kind == "swizzle":
        return isinstance(case, Conv2dCase) and depth is not None and bool(depth.line) and depth.major[0] == "depth"
    if kind == "stale stage":  # a recurrence would read the state of an earlier time step instead
        return isinstance(case, Conv2dCase)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
@pytest.mark.parametrize("kind", MADE)
def test_faults_of_a_kind_are_named_in_every_direction_and_variant(kind: str, case: Case) -> None:
    name = next(iter(case.expected()))
    if not applies(kind, case, name):
        pytest.skip("no such fault here")
    result = whole(case, name, MADE[kind])
    failure = Failure(case, record(case, [(name, result, case.expected()[name])])["evidence"][0])  # type: ignore[index]
    claims = findings(failure)
    assert claims, "no known pattern"
    assert claims[0].kind == kind, claims
    assert claims[0].explained >= 0.9 * failure.wrong, claims[0]


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        pytest.param(TENSOR, marks=pytest.mark.slow),
        pytest.param(conv("wgrad", "wgmma", "128x256", "bfloat16", "32 channels"), marks=pytest.mark.slow),
        pytest.param(conv("dgrad", "simt", "64x64", "float32", "3x3"), marks=pytest.mark.slow),
        RnnCase("forward", "cluster", "bfloat16", 2, 3, 9, 200, 1, False, "relu"),
        MaxPool2dCase("backward", "strided", "bfloat16", "nchw", "3x3/2"),
        UnfoldCase("unfold", "float32", "nchw", (3, 3), (2, 2), (1, 1), (1, 1)),
    ],
    ids=lambda case: case.key,
)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
def test_random_corruption_has_no_known_pattern(case: Case, share: float) -> None:
    name, expected = next(iter(case.expected().items()))
    draw = torch.Generator().manual_seed(3)
    noise = torch.randint(1, 8, expected.shape, generator=draw) * (torch.rand(expected.shape, generator=draw) < share)
    result = (expected.double() + noise).to(expected.dtype)
    failure = Failure(case, record(case, [(name, result, expected)])["evidence"][0])  # type: ignore[index]
    assert failure.wrong > 0
    assert findings(failure) == []


# ---- evidence ------------------------------------------------------------------------------------------------------------------


def test_evidence_describes_what_is_wrong_and_keeps_the_tile() -> None:
    expected = TENSOR.expected()["y"]
    result = expected.clone()
    result[0, 8:16, 0, 3] += 2  # row 3 of the product, eight columns
    result[1, 64, 0, 0] = torch.nan  # row 255, in the second column of tiles
    kept_evidence = json.loads(json.dumps(evidence(TENSOR, "y", result, expected)))
    assert (kept_evidence["wrong"], kept_evidence["elements"]) == (9, expected.numel())
    assert kept_evidence["values"] == {"NaN": 1, "0": int((result == 0)[result != expected].sum()), "differences": {"2": 8}}
    (part,) = kept_evidence["parts"]
    assert (part["rows"], part["columns"], part["tiles"]) == ("3, 255", "8-15, 64", [[0, 0], [3, 1]])
    assert (part["lanes"], part["rows of a fragment"]) == ("12-15, 28", "3, 15")
    failure = Failure(TENSOR, kept_evidence)
    assert [tile.number for tile in failure.tiles] == [(0, 0), (3, 1)]
    assert failure.tiles[0].wrong.nonzero().tolist() == [[3, column] for column in range(8, 16)]
    assert torch.equal(failure.tiles[0].result[:, :64], result.permute(0, 2, 3, 1).reshape(-1, 72)[:64, :64].double())


@pytest.mark.parametrize("geometry", ["3x3", "several column tiles", "deep", "persistent blocks"])
def test_no_more_is_kept_than_there_is_room_for(geometry: str) -> None:
    case = conv("fprop", "wgmma", "256x128", "tf32", geometry)
    expected = case.expected()["y"]
    result = torch.rand(expected.shape, generator=torch.Generator().manual_seed(0))  # hardly compressible
    kept_evidence = evidence(case, "y", result, expected)
    assert sum(len(kept["data"]) for kept in kept_evidence["kept"]) <= MOST_KEPT
    assert len(json.dumps(kept_evidence)) < MOST_KEPT + (8 << 10)


def test_evidence_names_another_shape_or_dtype() -> None:
    expected = TENSOR.expected()["y"]
    assert evidence(TENSOR, "y", expected.double(), expected)["instead"] == f"float64 of shape {list(expected.shape)}"
    assert evidence(TENSOR, "y", expected[1:], expected)["instead"] == f"bfloat16 of shape {list(expected[1:].shape)}"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], ""),
        ([5], "5"),
        ([0, 1, 2, 3], "0-3"),
        ([0, 2, 4, 6], "0-6 by 2"),
        ([1, 9], "1, 9"),
        ([0, 1, 2, 8, 9, 10, 64], "0-2, 8-10, 64"),
        ([3, 64, 65, 66], "3, 64-66"),
    ],
)
def test_ranges(numbers: list[int], words: str) -> None:
    assert ranges(numbers) == words


# ---- explain -------------------------------------------------------------------------------------------------------------------


def test_explain_names_pattern_plan_and_outcome_on_the_emulator(tmp_path: Path) -> None:
    case = conv("fprop", "mma", "64x64", "bfloat16", "3x3", small=True)
    wrong = case.expected()["y"].clone()
    wrong[:] = whole(case, "y", without_addend)
    job = {"job": "cuda: a", "engine": "cuda", "cases": [record(case, [("y", wrong, case.expected()["y"])])]}
    right = {"job": "cuda: b", "engine": "cuda", "cases": []}
    file = tmp_path / "checks.jsonl"
    file.write_text(f"{json.dumps(job)}\n\n{json.dumps(right)}\n")
    text = explain(file)
    count = f"{int((wrong != case.expected()['y']).sum()):,}"
    assert "missing bias: the bias is not added; explains " + f"{count} of {count}" in " ".join(text.split())
    assert "conv2d_fprop_mma_kernel<bfloat16, MmaTile<64, 64, 2, 2>" in text
    assert "right there: the hardware and the emulator differ" in text
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    assert explain(file, case="fprop", emulate=False) == text[: text.index("\nemulator")]
    assert explain(file, case="dgrad") == f"{file}: no failed case that has 'dgrad' in its line"


@pytest.mark.parametrize("outcome", ["error", "hung", "crashed"])
def test_a_case_without_results_is_explained_by_its_plan(outcome: str, tmp_path: Path) -> None:
    case = RnnCase("backward", "single_block", "float32", 0, 2, 3, 40, 1, False, "relu")
    file = tmp_path / "case.json"
    file.write_text(json.dumps({"outcome": outcome, "case": case.as_json(), "detail": "no end within 60 s"}, indent=1))
    text = explain(file, emulate=False)
    assert f"{outcome}; no end within 60 s" in text
    assert "rnn_single_block_kernel<float, BackwardPass<ElmanCell>>" in text


def test_a_bare_case_is_run_on_the_emulator(tmp_path: Path) -> None:
    file = tmp_path / "case.json"
    file.write_text(json.dumps(MaxPool2dCase("indices", "gather", "float32", "nchw", "2x2").as_json()))
    assert "right there" in explain(file)


def test_what_is_no_result_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checks.jsonl"
    file.write_text('{"job": 1}\nno JSON\n')
    with pytest.raises(ValueError, match=r"checks.jsonl, line 2: expected JSON, got 'no JSON'"):
        explain(file)


@pytest.mark.parametrize("content", [b"", b"3", b"[1, 2]", b'{"a": 1}', b"\xff\xfe{", b'{"op": "rnn"'])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "checks.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checks\.jsonl"):
        explain(file)


@pytest.mark.parametrize("case", [{"op": "nope"}, {"op": "rnn", "x": 3}, {"op": "conv2d"}])
def test_a_case_of_another_version_does_not_hide_the_others(case: dict, tmp_path: Path) -> None:
    good = MaxPool2dCase("indices", "gather", "float32", "nchw", "2x2").as_json()
    cases = [{"outcome": "wrong", "case": fields, "detail": "d", "evidence": []} for fields in (case, good)]
    file = tmp_path / "checks.jsonl"
    file.write_text(json.dumps({"job": "cuda: a", "cases": cases}) + "\n")
    text = explain(file)
    assert "cannot be determined" in text
    assert "right there" in text
