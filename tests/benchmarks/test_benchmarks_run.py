"""Runs of the benchmarks, all but one on the CPU: their results, how they resume, and what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import results, runner
from benchmarks.cases import Case
from benchmarks.cli import main
from benchmarks.compare import compare
from benchmarks.measure import Measurement, Setting
from benchmarks.ops import OPERATIONS
from benchmarks.report import readme
from benchmarks.report.files import write
from benchmarks.report.readme import BEGIN, END, README
from benchmarks.repro import script
from benchmarks.runner import Run
from benchmarks.suites import SUITES, Selected
from benchmarks.timing import QUICK, Summary
from tests.benchmarks.fake_results import case, fake_document, fake_row
from torch_unroll.engines import load, refusal

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("switches_may_be_set")
SETTING = Setting(CPU, ("torch",), ("eager",), QUICK)


@pytest.mark.parametrize(
    ("suite", "some"),
    [
        *((suite, ".") for suite in SUITES if suite != "training"),
        ("training", "lenet5"),
        pytest.param("training", ".", marks=pytest.mark.slow),
    ],
)
def test_a_quick_run_of_every_suite(suite: str, some: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quick.json"
    assert (
        main(["run", "--quick", "--suite", suite, "--case", some, "--engine", "torch", "--device", "cpu", "--out", str(out)]) == 0
    )
    document = results.load(out)
    assert document["complete"]
    assert document["rows"]
    for row in document["rows"]:
        assert suite in row["suites"]
        assert {name: (entry["status"], entry["message"]) for name, entry in row["providers"].items()} == {
            "torch": ("ok", ""),
            "eager": ("ok", ""),
        }
        assert row["ratios"]["torch/eager"]["warm"]["median"] > 0
    assert not out.with_name("quick.json.partial").exists()
    printed = capsys.readouterr().out
    assert "× eager" in printed


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    """Short calls are replayed from graphs, cold and warm; memory, ceilings and host times are measured; a report can be made."""
    out = tmp_path / "gpu.json"
    chosen = ["--suite", "lenet5", "--suite", "rnn", "--dtype", "bf16", "--baseline", "eager", "--case", "N=256|H=256"]
    assert main(["run", "--quick", *chosen, "--out", str(out)]) == 0
    document = results.load(out)
    assert document["environment"]["device_type"] == "cuda"
    assert set(document["ceilings"]["product_tflop_s"]) == {"bf16", "fp16", "tf32", "fp32", "fp64"}
    assert {overhead["op"] for overhead in document["overheads"]} >= {"conv2d", "rnn"}
    assert any(row["method"] == "graph" for row in document["rows"])
    for row in document["rows"]:
        assert row["clocks_after"]["sm_mhz"] > 0
        for entry in row["providers"].values():
            assert entry["status"] in ("ok", "refused"), entry
            if entry["status"] == "ok":
                assert min(entry["cold"]["median"], entry["warm"]["median"]) > 0
                assert entry["peak_bytes"] >= entry["workspace_bytes"] >= 0
    assert any(path.name.endswith("memory.png") for path in write([document], tmp_path, "gpu"))


@pytest.mark.skipif(refusal("cuda", "conv2d", CPU, torch.float32) is not None, reason="the emulated kernels are not built")
def test_emulated_kernels_are_checked_and_not_timed() -> None:
    row = Measurement(case(N=9, H=40), Setting(CPU, ("cuda",), ("eager",), QUICK)).run()
    emulated = row["providers"]["cuda"]
    assert emulated["status"] == "checked"
    assert "emulated, at N=1," in emulated["message"]
    assert not {"cold", "warm", "first_call_ms"} & set(emulated)
    assert not row["ratios"]


def test_what_is_wrong_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = load("torch").conv2d_fprop
    monkeypatch.setattr(load("torch"), "conv2d_fprop", lambda *inputs: right(*inputs) * 1.001, raising=False)
    row = Measurement(case(), SETTING).run()
    assert row["status"] == row["providers"]["torch"]["status"] == "wrong"
    assert "error" in row["providers"]["torch"]["message"]
    assert "warm" not in row["providers"]["torch"]
    assert not row["ratios"]
    assert row["providers"]["eager"]["warm"]["median"] > 0


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no kernel"), "error"), (torch.OutOfMemoryError("full"), "out of memory")]
)
def test_what_fails_says_so(monkeypatch: pytest.MonkeyPatch, error: Exception, status: str) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(load("torch"), "conv2d_fprop", fail, raising=False)
    row = Measurement(case(), SETTING).run()
    assert row["providers"]["torch"]["status"] == status
    assert str(error) in row["providers"]["torch"]["message"]
    assert row["providers"]["eager"]["warm"]["median"] > 0


def test_one_bad_case_does_not_end_the_run(tmp_path: Path) -> None:
    impossible = case(H=2, W=2)  # the plane is smaller than the filter
    run = Run([Selected(impossible, ["a"], []), Selected(case(), ["a"], [])], SETTING, tmp_path / "r.json", "", quick=True)
    bad, good = run.go()["rows"]
    assert (bad["status"], good["status"]) == ("error", "ok")
    assert "RuntimeError" in bad["message"]


def a_run(tmp_path: Path, measure: Any, count: int = 4, minutes: float | None = None) -> Run:
    cases = [Selected(case(C=i + 1), ["lenet5"], []) for i in range(count)]
    return Run(cases, SETTING, tmp_path / "r.json", "", minutes, quick=True, measure=measure)


def test_an_interrupted_run_keeps_what_it_has_and_resumes(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(measured_case: Case, setting: Setting) -> results.Row:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(measured_case.key)
        return fake_row(measured_case)

    with pytest.raises(KeyboardInterrupt):
        a_run(tmp_path, measure).go()
    kept = results.load(tmp_path / "r.json")
    assert (kept["complete"], len(kept["rows"])) == (False, 2)

    def measure_rest(measured_case: Case, setting: Setting) -> results.Row:
        assert measured_case.key not in measured, "measured twice"
        return fake_row(measured_case)

    document = a_run(tmp_path, measure_rest).go()
    assert [row["case"] for row in document["rows"]] == [case(C=i + 1).key for i in range(4)]
    assert document["complete"]
    assert all(row["status"] == "ok" for row in document["rows"])
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]


def test_a_case_that_took_the_process_down_is_not_tried_again(tmp_path: Path) -> None:
    class Died(BaseException):
        pass

    def die(measured_case: Case, setting: Setting) -> results.Row:
        if measured_case == case(C=2):
            raise Died
        return fake_row(measured_case)

    with pytest.raises(Died):
        a_run(tmp_path, die).go()
    with (tmp_path / "r.json.partial").open("a") as journal:
        journal.write('{"begun": "cut o')  # as if the disk had become full in the middle of a line
    document = a_run(tmp_path, die).go()
    statuses = {row["case"]: (row["status"], row["message"]) for row in document["rows"]}
    assert statuses[case(C=2).key] == ("error", "RuntimeError: the process ended in this case")
    assert sum(status == "ok" for status, _ in statuses.values()) == 3


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    document = results.new({"device": "this"}, "", 0)
    journal = results.Journal(tmp_path / "r.json")
    journal.resume(document)
    journal.end(fake_row(case()))
    assert len(journal.resume(document)[0]) == 1
    with pytest.raises(results.ForeignError, match="device: this → that"):
        journal.resume(results.new({"device": "that"}, "", 0))
    with pytest.raises(results.ForeignError, match="seed: 0 → 1"):
        journal.resume(results.new({"device": "this"}, "", 1))


def test_a_file_that_is_not_a_journal_is_not_continued(tmp_path: Path) -> None:
    document = results.new({"device": "this"}, "", 0)
    header = json.dumps(document).encode()
    without_environment = json.dumps({"schema": results.SCHEMA, "version": results.VERSION}).encode()
    for content in (
        b"",
        b'{"schema": "torch-un',
        b"\xff\xfe\x00",
        without_environment + b"\n",
        header + b'\n{"begun": "cut o\n{"begun": null}\n',
        header + b"\n5\n",
    ):
        (tmp_path / "r.json.partial").write_bytes(content)
        with pytest.raises(results.ForeignError, match=r"r\.json\.partial: .*(delete it|expected schema)"):
            results.Journal(tmp_path / "r.json").resume(document)


def test_a_budget_leaves_out_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(runner.time, "monotonic", lambda: now)

    def measure(measured_case: Case, setting: Setting) -> results.Row:
        nonlocal now
        now += 25
        return fake_row(measured_case)

    document = a_run(tmp_path, measure, count=9, minutes=1).go()
    assert len(document["rows"]) == 2  # a third case would end after 75 seconds, and the budget is 60
    assert len(document["left_out"]) == 7


def test_a_full_disk_ends_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    status = main(
        ["run", "--quick", "--suite", "pooling", "--engine", "torch", "--device", "cpu", "--out", str(tmp_path / "r.json")]
    )
    assert status == 2
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "resnet51"], "unknown suite 'resnet51'; nearest: resnet50"),
        (["run", "--engine", "cudo"], "unknown engine 'cudo'; nearest: cuda"),
        (["run", "--baseline", "eagr"], "unknown baseline 'eagr'; nearest: eager"),
        (["run", "--dtype", "bfloat16"], "unknown dtype"),
        (["run", "--op", "conv"], "unknown op 'conv'; nearest: conv2d"),
        (["list", "--suite", "lenet5", "--case", "conv2d/fprop/bf16/nchw/N=256,C=1,H=33"], "unknown case"),
        (["list", "--case", "["], "not a regular expression"),
        (["run", "--suite", "rnn", "--op", "conv2d"], "no case"),
        (["repro", "conv2d/fprop"], "expected OP/DIRECTION"),
        (["report", "/nowhere/x.json"], "No such file"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["not JSON", "{}", '{"schema": "torch-unroll-benchmarks", "version": 99}', '{"schema": "other"}', "[]"]
)
def test_foreign_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(results.ForeignError, match=r"f\.json"):
        results.load(tmp_path / "f.json")


def test_list_and_help_teach(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(suite in listed for suite in SUITES)
    assert main(["suites", "--suite", "resnet50", "--direction", "dgrad", "--dtype", "bf16"]) == 0
    assert "layer4.1.conv2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Start here" in capsys.readouterr().out


def test_compare_by_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    old = fake_document(fake_row(case()), fake_row(case(C=4)))
    assert compare(old, fake_document(fake_row(case()), fake_row(case(C=4), 8.0))) == 0
    assert "1 FASTER" in capsys.readouterr().out
    assert compare(old, fake_document(fake_row(case()), fake_row(case(C=4), 12.0), device="H998")) == 1
    shown = capsys.readouterr()
    assert "1 SLOWER" in shown.out
    assert "device: H999 → H998" in shown.err
    assert compare(old, fake_document(fake_row(case(), status="wrong"), fake_row(case(C=4)))) == 1
    assert "1 BROKEN" in capsys.readouterr().out
    failure = runner.failed(case(), "error", RuntimeError("no kernel"))
    assert compare(old, fake_document(failure, fake_row(case(C=4)))) == 1
    assert "RuntimeError: no kernel" in capsys.readouterr().out
    late = {**failure, "providers": fake_row(case())["providers"]}  # the case failed after its providers had been checked
    assert compare(old, fake_document(late, fake_row(case(C=4)))) == 1
    assert "1 BROKEN" in capsys.readouterr().out
    assert compare(fake_document(late, fake_row(case(C=4))), fake_document(late, fake_row(case(C=4)))) == 0
    assert compare(old, fake_document(fake_row(case(C=5)))) == 2


@pytest.mark.parametrize(
    "key",
    [
        "conv2d/dgrad/fp32/channels_last/N=2,C=3,H=6,W=6,K=4,R=3,S=3,padding=1",
        "max_pool2d/dgrad/fp32/nchw/N=1,C=2,H=6,W=6,window=2,stride=2",
        "rnn/train/fp32/nchw/T=3,N=2,I=4,H=5",
        "network/train/fp32/nchw/network=lenet5,N=2,image=32",
    ],
)
def test_repro_prints_a_script_that_runs(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repro", key, "--engine", "torch"]) == 0
    source = capsys.readouterr().out.replace("min_run_time=0.5", "min_run_time=0.01")
    assert key in source
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours" in done.stdout
    assert "torch" in done.stdout
    if "difference" in source:
        assert float(done.stdout.split("difference: ")[1].split()[0]) < 1e-5


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_has_a_script(suite: str) -> None:
    for entry in SUITES[suite].entries:
        for direction in entry.directions:
            compile(script(Case(OPERATIONS[entry.op], direction, "bf16", "nchw", entry.shape), "cuda"), "repro", "exec")


def test_a_report_shows_everything(tmp_path: Path) -> None:
    rows = [fake_row(case(C=i + 1), 10.0 + i) for i in range(3)]
    rows[1]["ratios"]["torch/eager"]["warm"] = Summary(0.5, 0.4, 0.6, 10).as_json()
    document = fake_document(*rows, fake_row(case(C=9), status="wrong"))
    document["left_out"] = ["a", "b"]
    written = write([document], tmp_path, "r")
    assert {path.name for path in written} == {"r.md", "r.html", "r-roofline.png", "r-ratios.png", "r-memory.png"}
    text = (tmp_path / "r.md").read_text()
    for expected in (
        "H999",
        "2.00×",
        "Where torch is faster",
        "0.50×",
        "wrong: why",
        "2 cases were left out",
        "empty graph",
        case(C=2).key,
    ):
        assert expected in text
    html = (tmp_path / "r.html").read_text()
    assert html.count("data:image/svg+xml") == 3
    assert "http" not in html.replace("http://www.w3.org", "")  # the page loads nothing from other sites
    data = json.loads(html.split('type="application/json">')[1].split("</script>")[0])
    assert [row["eager"] for row in data["rows"] if row["provider"] == "torch" and row["status"] == "ok"] == [2, 0.5, 2]


def test_results_of_different_machines_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device: H999 → H998"):
        write([fake_document(fake_row(case())), fake_document(fake_row(case()), device="H998")], tmp_path, "r")


def test_readme_is_what_the_results_say() -> None:
    """If this fails because results were added, run `python -m benchmarks report --readme`."""
    source = README.read_text()
    assert readme.apply(source, readme.text(readme.measured())) == source


def test_readme_of_nothing_says_so_and_of_something_shows_it() -> None:
    assert "nothing has been measured on a GPU" in readme.text([])
    generated = readme.text([fake_document(fake_row(case()))])
    assert "2.00×" in generated
    assert readme.apply(f"a {BEGIN} old {END} z", "new") == f"a {BEGIN}\n\nnew\n\n{END} z"
    with pytest.raises(ValueError, match="markers"):
        readme.apply("no markers", "new")


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([fake_document(engine_digest="here")], []),
        ([fake_document(engine_digest="other")], ["figures are of other, the sources here are here"]),
        ([fake_document()], ["unknown kernels"]),
        ([fake_document(engine_digest="here") | {"complete": False}], ["cut short"]),
        ([fake_document(engine_digest="here"), fake_document(engine_digest="here", device="H998")], ["several GPUs, H998, H999"]),
        ([fake_document(engine_digest="a", device="H998"), fake_document(engine_digest="b")], ["several GPUs", "are of a, b"]),
    ],
)
def test_readme_says_what_keeps_figures_from_being_of_these_sources(documents: list[results.Document], said: list[str]) -> None:
    caveats = readme.caveats(documents, kernels="here")
    assert len(caveats) == len(said)
    assert all(words in caveat for words, caveat in zip(said, caveats, strict=True))
