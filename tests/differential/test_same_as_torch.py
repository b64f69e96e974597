"""Every subject has torch's results or raises torch's exception, by every way into torch_unroll, under every transformation and
on every engine, except for the differences that exceptions.py lists or the transformation allows."""

from __future__ import annotations

import pytest
import torch

import torch_unroll as tu
from tests.differential import exceptions
from tests.differential.exceptions import EXCEPTIONS
from tests.differential.harness import Case, judge, torchs
from tests.differential.isolation import judge_apart
from tests.differential.selection import CASES, is_slow
from tests.differential.subjects import SUBJECTS
from tests.differential.transformations import TRANSFORMATIONS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Does not generate the slow cases if the run deselects them, since generating all cases takes ten seconds."""
    if "case" in metafunc.fixturenames:
        marks = metafunc.config.option.markexpr
        cases = [case for case in CASES if not is_slow(case)] if "not slow" in marks or marks == "compile" else CASES
        slow = {True: [pytest.mark.slow], False: []}
        metafunc.parametrize("case", [pytest.param(case, id=str(case), marks=slow[is_slow(case)]) for case in cases])


def test_same_as_torch(case: Case) -> None:
    known = exceptions.known(case)
    verdict = judge(case) if case.engine == "torch" else judge_apart(case)  # compiled code may crash the process
    if known is not None:
        assert verdict.difference, f"{case} is as torch's: remove its entry from EXCEPTIONS in tests/differential/exceptions.py"
        assert verdict.raised == known.raises.__name__, f"expected {known.raises.__name__}: {known.reason}\n{verdict.difference}"
    else:
        assert not verdict.difference, verdict.difference


def test_every_pattern_speaks_of_a_case() -> None:
    patterns = [pattern for entry in EXCEPTIONS for pattern in entry.cases]
    idle = [pattern for pattern in patterns if not any(pattern.matches(case) for case in CASES)]
    assert not idle, f"these patterns match no case, remove them: {idle}"


#: The public names of torch_unroll that need no subject, each with the reason.
NOT_COMPUTING = {
    "available_engines": "a list",
    "conv2d_workspace": "a setting",
    "explain": "tells what a call would do",
    "models": "its names are asked for below",
    "nn": "its names are asked for below",
    "override": "a way in",
    "replace": "a way in",
    "restore": "the way back",
    "use_engine": "a setting",
    "warmup": "loads kernels",
    "models.GoogLeNetOutputs": "a tuple",
    "models.HiddenMarkovModel": "calls no op of these",
}


def test_everything_has_a_subject() -> None:
    offered = {
        *tu.__all__,
        *(f"nn.{name}" for name in tu.nn.__all__),
        *(f"models.{name}" for name in tu.models.__all__),
    }
    covered = {name for subject in SUBJECTS for name in subject.covers}
    missing = sorted(offered - covered - NOT_COMPUTING.keys())
    assert not missing, (
        f"without a subject: {', '.join(missing)}. Add a Subject to SUBJECTS in tests/differential/subjects.py,"
        " with the name in its `covers`, or say in NOT_COMPUTING why it needs none."
    )
    assert covered | NOT_COMPUTING.keys() == offered, "a name is covered that torch_unroll does not offer"


def test_subjects_draw_the_same_numbers_every_time() -> None:
    for subject in SUBJECTS:
        for first, second in zip(subject.inputs(), subject.inputs(), strict=True):
            assert torch.equal(first, second), subject.name
        assert len(subject.dims) == len(subject.inputs()), subject.name


@pytest.mark.parametrize("name", [name for name, entry in TRANSFORMATIONS.items() if entry.wraps])
def test_torch_supports_the_transformations_that_wrap_exceptions(name: str) -> None:
    """All exceptions of these transformations count as equal, so one that always raised would compare nothing."""
    result = torchs("Conv2d-plain", name)
    assert isinstance(result, list), repr(result)
