"""Tests that every script of `examples/` runs as it is and prints what its docstring promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_unroll import available_engines

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _numbers(pattern: str, printed: str) -> list[float]:
    """Returns the number that each match of a pattern captures, and fails if there is no match."""
    numbers = [float(match) for match in re.findall(pattern, printed)]
    assert numbers, f"expected a match of {pattern!r} in:\n{printed}"
    return numbers


def _first_engine() -> str:
    return next(name for name, reason in available_engines(DEVICE).reasons.items() if reason is None)


def _check_drop_in(printed: str) -> None:
    assert "swapped: 1 Conv2d, 1 MaxPool2d" in printed
    assert f"override on engine {_first_engine()}" in printed
    assert max(_numbers(r"differs from torch by at most (\S+)", printed)) < 1e-5


def _check_train_lenet(printed: str) -> None:
    losses = _numbers(r"loss (\S+)", printed)
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    assert _numbers(r"were held out: (\S+)%", printed)[0] > 80


def _check_packed_rnn(printed: str) -> None:
    first, *_, last = _numbers(r"loss (\S+)", printed)
    assert last < first / 5
    assert _numbers(r"new sequences: (\S+)%", printed)[0] > 90


def _check_truncated_bptt(printed: str) -> None:
    first, last = _numbers(r"mean loss (\S+)", printed)
    assert last < first / 5
    assert "reaches 20 of 200 steps" in printed


def _check_cuda_graph(printed: str) -> None:
    assert _numbers(r"differ from the eager ones by (\S+)", printed) == [0]


def _check_explain_a_call(printed: str) -> None:
    engine = _first_engine()
    assert f"conv2d: engine {engine}" in printed
    assert f"rnn: engine {engine}" in printed
    if engine in ("cuda", "cupy"):
        for function in ("conv2d_fprop", "conv2d_wgrad", "rnn_"):
            assert function in printed
    assert "conv2d: engine torch's own operator" in printed


def _check_torch_compile(printed: str) -> None:
    assert "graphs: 1\n" in printed
    for operator in ("conv2d_fprop", "max_pool2d_forward", "rnn_forward"):
        assert f"torch_unroll.{operator}.default" in printed
    assert _numbers(r"eager mode by at most (\S+)", printed)[0] < 1e-5


def _check_own_kernel(printed: str) -> None:
    assert max(_numbers(r"(?:direct|tu\.conv2d): error of at most (\S+) in 48 outputs", printed)) < 1e-5
    assert printed.count("error of at most") == 2


def _check_without_nvcc(printed: str) -> None:
    for name, reason in available_engines(DEVICE).reasons.items():
        expected = f"engine {name} computed a convolution" if reason is None else f"engine {name} raised: .*{re.escape(reason)}"
        assert re.search(expected, printed), printed
    report = printed.partition("python -m torch_unroll doctor:")[2]
    assert "nvcc" in report
    assert "engine" in report


def _check_benchmark_a_layer(printed: str) -> None:
    assert min(_numbers(r"(?:torch|torch_unroll): (\d+) µs", printed)) > 0
    assert printed.count("µs") == 2
    assert ("say nothing about a GPU" in printed) == (DEVICE == "cpu")


#: The check of what each script prints, and the package that the script needs, if any.
CHECKS: dict[str, tuple[Callable[[str], None], str | None]] = {
    "drop_in.py": (_check_drop_in, None),
    "train_lenet.py": (_check_train_lenet, "sklearn"),
    "packed_rnn.py": (_check_packed_rnn, None),
    "truncated_bptt.py": (_check_truncated_bptt, None),
    "cuda_graph.py": (_check_cuda_graph, None),
    "explain_a_call.py": (_check_explain_a_call, None),
    "torch_compile.py": (_check_torch_compile, None),
    "own_kernel.py": (_check_own_kernel, "numba"),
    "without_nvcc.py": (_check_without_nvcc, None),
    "benchmark_a_layer.py": (_check_benchmark_a_layer, None),
}


@pytest.mark.parametrize("script", CHECKS)
def test_a_script_prints_what_it_promises(script: str) -> None:
    check, package = CHECKS[script]
    if package:
        pytest.importorskip(package, reason=f"{script} needs {package}: see the docstring at its head")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pyext"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    if result.stdout.startswith("skipped: "):
        pytest.skip(result.stdout.strip().removeprefix("skipped: "))
    check(result.stdout)


def test_every_script_is_checked_and_listed_in_the_readme() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(CHECKS) == scripts
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(examples/(\w+\.py)\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [text for text, _ in listed] == [target for _, target in listed]
    assert {target for _, target in listed} == scripts


@pytest.mark.parametrize("script", CHECKS)
def test_a_script_is_short_and_says_what_it_needs(script: str) -> None:
    text = (EXAMPLES / script).read_text()
    assert len(text.splitlines()) <= 60
    docstring = text.split('"""')[1]
    assert "Prints " in docstring or "prints " in docstring
    assert re.search(r"^Needs ", docstring, re.MULTILINE)
