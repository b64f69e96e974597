"""The benchmark of the host time of a call. Launches that do nothing are tested in processes of their own, as they are used."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import results
from benchmarks.cli import main
from benchmarks.overhead import __main__ as driver
from benchmarks.overhead import rows
from benchmarks.overhead.command import MARGIN
from benchmarks.overhead.counts import counter
from benchmarks.overhead.measure import count_whole, measure_streams, undisturbed
from benchmarks.overhead.null import null_call
from benchmarks.overhead.rows import ROWS
from benchmarks.overhead.stub import LaunchedError, Stub, compile_stub, no_launches
from torch_unroll.engines import refusal
from torch_unroll.engines.cuda import kernel_object

CPU = torch.device("cpu")
emulated = pytest.mark.skipif(
    refusal("cuda", "conv2d", CPU, torch.float32) is not None, reason="the emulated kernels are not built"
)
BY_NAME = {row.name: row for row in ROWS}


def in_a_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script, with the modules of this process in reach."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> results.Document:
    """The results of a run of some rows, one round each."""
    path = tmp_path_factory.mktemp("overhead") / "results.json"
    only = "^conv2d/.*/fp32|^conv2d/fprop/bf16|max_pool2d/train|nn.RNN/dx/layers=1|override|rnn_cell/fprop"
    assert main(["overhead", "--rounds", "1", "--only", only, "--json", str(path)]) == 0
    return results.load(path, driver.SCHEMA, driver.VERSION)


@emulated
def test_a_run(measured: results.Document) -> None:
    assert [row["row"] for row in measured["rows"]] == [
        "conv2d/fprop/fp32/nchw",
        "conv2d/train/fp32/nchw",
        "conv2d/fprop/bf16/nchw",
        "conv2d/fprop/bf16/channels_last",
        "nn.Conv2d/fprop/override",
        "nn.Conv2d/train/override",
        "max_pool2d/train/fp32/nchw",
        "rnn_cell/fprop/fp32",
        "nn.RNN/dx/layers=1",
    ]
    assert measured["command"].startswith("python -m benchmarks overhead --rounds 1 ")
    assert (measured["prepare"], measured["rounds"]) == (True, 1)
    assert "1 of " in measured["environment"]["device"]
    for row in measured["rows"]:
        assert row["at_most"] == BY_NAME[row["row"]].at_most
        assert list(row["us"]) == ["ours", "torch", "null"]
        assert all(time["median"] > 0 and time["samples"] == 1 for time in row["us"].values())
        assert row["ratio"]["median"] == pytest.approx(row["us"]["ours"]["median"] / row["us"]["torch"]["median"])
        assert (row["gpu_us"] is not None) == torch.cuda.is_available()
    titles, *lines = driver.table({**measured, "gpu": None}).splitlines()
    assert titles.split()[-4:] == ["at", "most", "launches", "allocations"]
    assert [line.split()[0] for line in lines] == [row["row"] for row in measured["rows"]]


@emulated
def test_launches_and_allocations_of_a_run(measured: results.Document) -> None:
    counts = {row["row"]: (row["launches"], row["allocations"]) for row in measured["rows"]}
    assert counts["conv2d/fprop/fp32/nchw"] == counts["conv2d/fprop/bf16/channels_last"] == (1, 1)
    assert counts["nn.Conv2d/fprop/override"] == counts["conv2d/fprop/fp32/nchw"]
    assert counts["nn.Conv2d/train/override"] == counts["conv2d/train/fp32/nchw"]
    assert counts["conv2d/fprop/bf16/nchw"] > (1, 1)  # it packs x and w first
    assert counts["max_pool2d/train/fp32/nchw"] == (2, 3)  # y, the offsets and dx
    assert counts["rnn_cell/fprop/fp32"][0] == 1
    assert counts["nn.RNN/dx/layers=1"] >= (3, 3)


LAUNCHES_NOTHING = """
import torch
import torch_unroll as tu
from benchmarks.overhead.counts import counter
from benchmarks.overhead.stub import LaunchedError, kernels_run, no_launches
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.cuda import kernel_object

torch.use_deterministic_algorithms(True)  # fills new memory with NaN
real = kernel_object("cpu").library
x, w = torch.ones(2, 16, 5, 5, dtype=torch.bfloat16), torch.ones(16, 16, 3, 3, dtype=torch.bfloat16)
with no_launches() as stub:
    for images, filters in ((x, w), (x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last))):
        before = stub.launches()
        with recording() as record:
            assert tu.conv2d(images, filters, engine="cuda").isnan().all()
        assert stub.launches() - before == len(record.launches) > 0
        counts, _ = counter(stub.launches)(lambda: tu.conv2d(images, filters, engine="cuda"))
        assert counts.launches == len(record.launches)
    assert kernels_run(real) == 0
    assert stub.torch_unroll_launch.argtypes == real.torch_unroll_launch.argtypes
assert kernel_object("cpu").library is real
try:
    with no_launches():
        kernel_object("cpu").library = real
        tu.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), engine="cuda")
except LaunchedError as error:
    assert "launches reached the emulator" in str(error), error
else:
    raise AssertionError("a launch was not noticed")
"""


@emulated
def test_the_stub_launches_nothing_and_a_launch_past_it_is_noticed() -> None:
    process = in_a_process(LAUNCHES_NOTHING, TORCH_UNROLL_PREPARE="0")
    assert process.returncode == 0, process.stderr


PLANTED = """
import sys
from dataclasses import replace
from benchmarks.overhead import __main__ as driver
from benchmarks.overhead import rows

pool = next(row for row in rows.ROWS if row.name == "max_pool2d/fprop/fp32/nchw")
rows.ROWS = (replace(pool, name="planted", at_most=1e-6), replace(pool, name="lenient", at_most=1e6))
sys.exit(driver.main(["--check", "--rounds", "2"]))
"""


@emulated
def test_a_check_fails_for_a_planted_limit() -> None:
    process = in_a_process(PLANTED)
    assert process.returncode == 1, process.stderr
    assert "TOO SLOW: planted: " in process.stderr
    assert "lenient" not in process.stderr.partition("TOO SLOW")[2]
    assert "lenient" in process.stdout


def fake_document(**ratios: tuple[float, float | None]) -> results.Document:
    """Results with these ratios and limits."""
    time = {"median": 2.0, "q1": 2.0, "q3": 2.0, "samples": 1}
    return {
        "gpu": "H200",
        "rows": [
            {
                "row": name,
                "at_most": at_most,
                "us": {"ours": time, "torch": time},
                "ratio": {**time, "median": ratio},
                "launches": 1,
                "allocations": 2,
                "gpu_us": {"ours": {**time, "median": 321.0}, "torch": time},
            }
            for name, (ratio, at_most) in ratios.items()
        ],
    }


def test_a_check_names_the_rows_beyond_their_limits_and_the_margin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = fake_document(within=(0.5 * MARGIN, 0.5), beyond=(0.51 * MARGIN, 0.5), free=(9.0, None))
    monkeypatch.setattr(driver, "measure_all", lambda *_: document)
    assert driver.main([]) == 0
    assert driver.main(["--check"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "TOO SLOW: beyond: 0.64 × torch, at most 1.25 × 0.50\n"
    monkeypatch.setattr(driver, "measure_all", lambda *_: {**document, "rows": document["rows"][:1]})
    assert driver.main(["--check"]) == 0


def test_the_table_shows_real_calls_where_there_is_a_gpu() -> None:
    titles, line = driver.table(fake_document(some=(1.0, None))).splitlines()
    assert titles.endswith("real: ours µs  torch µs")
    assert line.split() == ["some", "2.00", "2.00", "–", "1.00", "–", "1", "2", "321", "2.00"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no compiler"), 2), (OSError("disk full"), 2), (LaunchedError("3 launches"), 2), (KeyboardInterrupt(), 130)],
)
def test_what_ends_a_measurement(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(driver, "measure_all", fail)
    assert driver.main([]) == status
    assert str(error) in capsys.readouterr().err


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overhead", "--list"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [row.name for row in ROWS]
    assert len(BY_NAME) == len(ROWS)
    assert main(["overhead", "--list", "--only", "RNN/train"]) == 0
    assert capsys.readouterr().out.count("nn.RNN/train") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds: expected a number from 1 to 1000, got 0"),
        (["--rounds", "many"], "--rounds: expected a number from 1 to 1000, got many"),
        (["--prepare", "maybe"], "--prepare: invalid choice"),
        (["--only", "("], "--only: expected a regular expression"),
        (["--only", "conv3d"], "--only 'conv3d': no row has a matching name"),
        (["--only", "fprop/inductor"], "conv2d/fprop/inductor: compiled graphs are measured with --compiled only"),
        (["conv2d"], "unrecognized arguments: conv2d"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: Any = main(["overhead", *arguments])
    except SystemExit as error:  # from argparse
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("prepare", "value"), [("on", ""), ("off", "0")])
def test_prepared_calls_are_switched_by_the_environment(prepare: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr("benchmarks.overhead.command.subprocess.run", run)
    assert main(["overhead", "--prepare", prepare, "--only", "rnn_cell"]) == 7
    ((command, environment),) = calls
    assert command == [sys.executable, "-m", "benchmarks.overhead", "--prepare", prepare, "--only", "rnn_cell"]
    assert environment["TORCH_UNROLL_PREPARE"] == value
    assert str(Path(torch.__file__).parents[1]) in environment["PYTHONPATH"].split(os.pathsep)


def test_without_a_compiler_or_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.overhead.stub.refusal", lambda *_: "not built")
    with pytest.raises(ValueError, match="not built"), no_launches():
        pass
    compiler = tmp_path / "compiler"
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ValueError, match=r"g\+\+ is missing"):
        compile_stub(tmp_path / "stub.so")
    compiler.write_text('#!/bin/sh\ntest "$1" = -dumpfullversion && echo 14.1.0 && exit\necho it is Monday >&2\nexit 1\n')
    compiler.chmod(0o755)
    with pytest.raises(ValueError, match=r"stub.cpp does not compile:\nit is Monday"):
        compile_stub(tmp_path / "stub.so")


@emulated
def test_a_launching_function_without_a_stub_is_refused() -> None:
    with pytest.raises(ValueError, match="has no torch_unroll_resident, so kernels would be timed"):
        Stub(kernel_object("cpu").library, ("torch_unroll_resident",))


@emulated
@pytest.mark.parametrize("name", ["conv2d/fprop/bf16/nchw", "conv2d/train/fp32/nchw", "nn.RNN/dx/layers=1"])
def test_the_null_function_allocates_what_ours_does(name: str) -> None:
    """Results, gradients and workspace, in the sizes that ours has."""
    row, count = BY_NAME[name], counter(lambda: 0)
    subject = row.build(CPU)
    counts, plan, dy = count_whole(row, subject, count)
    forward, outputs = count(null_call(plan, subject.inputs))
    assert outputs[0].shape == dy.shape
    assert outputs[0].stride() == dy.stride()
    allocated = forward.allocated
    if row.direction != "fprop":
        wanted = subject.inputs if row.direction == "train" else subject.inputs[:1]
        backward, gradients = count(lambda: torch.autograd.grad(outputs[0], wanted, dy))
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in wanted]
        allocated += backward.allocated
    assert sorted(allocated) == sorted(counts.allocated)


def test_allocations_are_counted_whoever_makes_them() -> None:
    def call() -> str:
        torch.empty(100, dtype=torch.uint8)
        torch.ones(3, 4).sum()
        return "result"

    counts, result = counter(iter((5, 7)).__next__)(call)
    assert (counts.launches, result) == (2, "result")
    assert counts.allocated == (100, 48, 4)


@emulated
@pytest.mark.parametrize("name", ["max_pool2d/train/fp32/nchw", "nn.Conv2d/fprop/override"])
def test_streams_of_real_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    times = measure_streams(BY_NAME[name], 2, CPU, calls=3)
    assert list(times) == ["ours", "torch"]
    assert all(time["median"] > 0 and time["samples"] == 2 for time in times.values())
    assert len(waits) == 2 * (2 + 1) * 2  # before and after each sample, and one sample to warm up, of both


@pytest.mark.gpu
def test_a_run_on_a_gpu(measured: results.Document) -> None:
    assert measured["gpu"] == torch.cuda.get_device_name()
    for row in measured["rows"]:
        assert all(time["median"] > 0 for time in row["gpu_us"].values())


def test_nothing_disturbs_a_measurement() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert gc.isenabled()
        with undisturbed():
            assert (torch.get_num_threads(), gc.isenabled()) == (1, False)
            with undisturbed():
                pass
            assert not gc.isenabled()
        assert (torch.get_num_threads(), gc.isenabled()) == (2, True)
    finally:
        torch.set_num_threads(threads)


@emulated
@pytest.mark.slow
def test_calls_in_compiled_graphs(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    only = "conv2d/(train/aot_eager|fprop/inductor)"
    assert main(["overhead", "--compiled", "--rounds", "1", "--only", only, "--json", str(path)]) == 0
    measured_rows = json.loads(path.read_text())["rows"]
    assert [(row["row"], list(row["us"])) for row in measured_rows] == [
        ("conv2d/train/aot_eager", ["ours", "torch"]),
        ("conv2d/fprop/inductor", ["ours", "torch"]),
    ]
    assert measured_rows[1]["launches"] == 1
    assert measured_rows[0]["launches"] > 1


def test_every_row_has_its_limits() -> None:
    limits = {name: row.at_most for name, row in BY_NAME.items()}
    assert limits["conv2d/fprop/fp32/nchw"] == 0.4
    assert limits["conv2d/train/bf16/channels_last"] == 0.25
    assert limits["nn.RNN/dx/layers=1"] == limits["nn.RNN/train/layers=2,directions=2"] == 0.5
    assert {row.at_most for row in rows.ROWS if row.compiled} == {1.5}
    assert {row.name for row in rows.ROWS if row.at_most is None} == {
        f"nn.Conv2d/{direction}/{what}" for direction in ("fprop", "train") for what in ("module", "override")
    }
