"""Tests `python -m torch_unroll doctor`: its report on this machine, and its advice for made-up machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from torch_unroll import __main__ as command_line
from torch_unroll.engines import NAMES
from torch_unroll.kernels.table import kernels
from torch_unroll.tools import doctor, environment
from torch_unroll.tools.doctor import advice, text
from torch_unroll.tools.environment import EngineReport, Gpu, KernelObject, Survey, Tool

NVCC = Tool("nvcc", "/usr/local/cuda/bin/nvcc", "13.0")
NO_NVCC = Tool("nvcc", lack="nvcc is not found on PATH: install the CUDA toolkit 12.0 or newer")
H200 = Gpu("NVIDIA H200", "9.0", "580.65.06", 143771, 0, False)
HEALTHY = Survey(
    version="0.1.0",
    kernel_digest="0123456789abcdef",
    python="3.12.1",
    platform="Linux",
    packages={"torch": "2.13.0", "numpy": "2.4.6"},
    torch_cuda="13.0",
    torch_sees_gpu=True,
    precision={"conv2d": "tf32", "rnn": "tf32"},
    tools=(NVCC,),
    gpus=(H200,),
    cuda_object=KernelObject("lib/libtorch_unroll_cuda.so", built=True, kernels=204),
    emulated_object=KernelObject("lib/libtorch_unroll_emulated.so", built=False),
    engines=(
        EngineReport("cuda", "cuda", {"conv2d": ("float32",)}),
        EngineReport("numba", "cuda", {}, ("numba-cuda is not installed: pip install numba-cuda",)),
        EngineReport("torch", "cuda", {"conv2d": ("float32",)}),
    ),
    variables={},
    measured_gpus=("NVIDIA H200",),
)
WITHOUT_GPU = replace(HEALTHY, torch_sees_gpu=False)


def test_a_healthy_machine_gets_no_advice() -> None:
    assert advice(HEALTHY) == []
    assert "Nothing found" in text(HEALTHY)


@pytest.mark.parametrize(
    ("survey_of_machine", "finding", "remedy"),
    [
        (replace(WITHOUT_GPU, torch_cuda=None), "build without CUDA", "torch's CUDA build"),
        (
            replace(WITHOUT_GPU, variables={"CUDA_VISIBLE_DEVICES": ""}),
            "CUDA_VISIBLE_DEVICES is ''",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (WITHOUT_GPU, "cannot use the GPU through driver 580.65.06", "update the NVIDIA driver"),
        (replace(WITHOUT_GPU, gpus=()), "no NVIDIA GPU", "8.0 or newer"),
        (
            replace(HEALTHY, cuda_object=KernelObject("x.so", built=False), tools=(NO_NVCC,)),
            "not compiled ahead of time",
            "pip install 'cupy-cuda13x[ctk]'",
        ),
        (
            replace(HEALTHY, cuda_object=KernelObject("x.so", built=False), tools=(NO_NVCC,), torch_cuda="12.8"),
            "not compiled ahead of time",
            "pip install 'cupy-cuda12x[ctk]'",
        ),
        (replace(HEALTHY, cuda_object=KernelObject("x.so", built=False)), "though nvcc is here", "pip install ."),
        (replace(HEALTHY, cuda_object=KernelObject("x.so", True, "no symbol")), "does not load: no symbol", "build it again"),
        (
            replace(HEALTHY, cuda_object=KernelObject("x.so", True, kernels=2, stale=("fold_kernel<float>",))),
            "lacks 1 of this version's kernels, such as fold_kernel<float>",
            "pip install .",
        ),
        (
            replace(HEALTHY, cuda_object=KernelObject("x.so", True, None, 2, (), ("fold_kernel<float>",), "no kernel image")),
            "1 of 2 compiled kernels do not run on this GPU: no kernel image",
            "TORCH_CUDA_ARCH_LIST=9.0",
        ),
        (replace(HEALTHY, gpus=(replace(H200, capability="7.5"),)), "compute capability 7.5", "8.0 or newer"),
        (replace(HEALTHY, gpus=(replace(H200, busy_percent=90),)), "90% busy", "nvidia-smi"),
        (replace(HEALTHY, measured_gpus=()), "no convolution was measured on a GPU of this kind (NVIDIA H200)", "make gpu"),
        (replace(HEALTHY, measured_gpus=("NVIDIA A100",)), "chosen by a model", "benchmarks choices --write"),
        (replace(HEALTHY, gpus=(replace(H200, mig=True),)), "split (MIG)", "fewer multiprocessors"),
        (replace(HEALTHY, precision={"conv2d": "ieee", "rnn": "tf32"}), "fp32 products of conv2d", "fp32_precision"),
        (replace(HEALTHY, variables={"CUDA_LAUNCH_BLOCKING": "1"}), "CUDA_LAUNCH_BLOCKING", "unset"),
        (replace(HEALTHY, variables={"TORCH_UNROLL_ENGINE": "torch"}), "names engine torch", "unset it"),
    ],
)
def test_each_finding_is_reported_with_its_remedy(survey_of_machine: Survey, finding: str, remedy: str) -> None:
    (only,) = advice(survey_of_machine)
    assert finding in only.finding
    assert remedy in only.remedy
    assert only.finding in text(survey_of_machine)
    assert only.remedy in text(survey_of_machine)


@pytest.mark.parametrize(("variable", "value"), [("CUDA_LAUNCH_BLOCKING", "0"), ("TORCH_UNROLL_ENGINE", "auto")])
def test_a_variable_at_its_default_gets_no_advice(variable: str, value: str) -> None:
    assert advice(replace(HEALTHY, variables={variable: value})) == []


def test_the_output_of_nvidia_smi_is_parsed() -> None:
    lines = "NVIDIA H200, 9.0, 580.65.06, 143771, 0, Disabled\nNVIDIA GeForce RTX 3060, 8.6, 550.54, 12288, [N/A], [N/A]\n"
    second = Gpu("NVIDIA GeForce RTX 3060", "8.6", "550.54", 12288, None, False)
    assert environment.parse_smi(f"{lines}\nno devices were found\n") == [H200, second]


def test_the_survey_of_this_machine_is_complete_and_serialisable(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [report["name"] for report in printed["engines"] if report["device"] == "cpu"] == list(NAMES)
    for report in printed["engines"]:
        assert report["serves"] or report["reasons"], f"{report['name']} on {report['device']} neither serves nor says why not"
    for tool in printed["tools"]:
        assert bool(tool["path"]) != bool(tool["lack"])
    assert printed["kernel_digest"] in text(environment.examine_machine())


def test_an_object_that_is_no_library_is_reported(tmp_path, monkeypatch) -> None:
    broken = tmp_path / "libtorch_unroll_emulated.so"
    broken.write_text("not a shared object")
    monkeypatch.setenv("TORCH_UNROLL_EMULATED", str(broken))
    emulated_object = environment.examine_machine().emulated_object
    assert emulated_object.built
    assert emulated_object.error


class StandInObject:
    """A kernel object built for sm_80: it lacks the rows that need a newer GPU, and its first kernel does not load."""

    def __init__(self, path: Path) -> None:
        names = [row.expression for row in kernels() if row.architecture == "80"]
        self.index = {name: number for number, name in enumerate(names)}
        self.library = self

    def torch_unroll_preload(self, kernel: int) -> int:
        return 209 if kernel == 0 else 0

    def torch_unroll_error_text(self, status: int) -> bytes:
        return b"no kernel image"


@pytest.mark.parametrize("architecture", [None, "sm_80", "sm_90a"])
def test_an_object_must_hold_what_the_gpu_runs(architecture: str | None, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(environment.cuda, "KernelObject", StandInObject)
    monkeypatch.setattr(environment.cuda, "library_path", lambda _: tmp_path)
    kernel_object = environment.examine_object("cuda", architecture)
    newer = {row.expression for row in kernels() if row.architecture != "80"}
    assert set(kernel_object.stale) == (newer if architecture == "sm_90a" else set())
    assert len(kernel_object.unloadable) == (0 if architecture is None else 1)
    assert kernel_object.refusal == (None if architecture is None else "no kernel image")


def test_missing_tools_are_reported_with_their_remedy(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler")
    tools = {tool.name: tool for tool in environment.examine_machine().tools}
    assert "install the CUDA toolkit" in tools["nvcc"].lack
    assert "apt install g++" in tools["g++"].lack


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, (_, purpose) in command_line.COMMANDS.items():
        assert name in listed
        assert purpose in listed
    assert command_line.main(["docter"]) == 2
    assert f"no command 'docter'; the commands are {', '.join(command_line.COMMANDS)}" in capsys.readouterr().err


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_has_a_help_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        command_line.main([name, "--help"])
    assert error.value.code == 0
    assert f"python -m torch_unroll {name}" in capsys.readouterr().out


def test_run_time_engines_match_torchs_cuda() -> None:
    assert doctor.install_command("numba", HEALTHY) == "pip install 'numba-cuda[cu13]'"
    older = doctor.install_command("cupy", replace(HEALTHY, torch_cuda="12.8"))
    assert older == "pip install 'cupy-cuda12x[ctk]' 'cuda-bindings==12.*'"
