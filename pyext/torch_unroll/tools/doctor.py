"""`python -m torch_unroll doctor`: what is installed, which engines can run here, why others cannot, and what costs speed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch_unroll.engines import NAMES
from torch_unroll.tools.environment import KernelObject, Survey, examine_machine


@dataclass(frozen=True)
class Advice:
    """One finding that keeps the kernels from running, or from being fast, and its remedy."""

    finding: str
    remedy: str


def advice(survey: Survey) -> list[Advice]:
    """What keeps calls from being faster here: first a lack of a GPU or kernels, then GPUs, precision, environment variables."""
    if not survey.torch_sees_gpu:
        return [_why_no_gpu(survey), *_environment_advice(survey)]
    return [*_object_advice(survey), *_machine_advice(survey), *_environment_advice(survey)]


def _why_no_gpu(survey: Survey) -> Advice:
    meanwhile = "until then calls on CPU tensors go to torch's own operators"
    if survey.torch_cuda is None and survey.gpus:
        return Advice(
            f"this machine has a GPU ({survey.gpus[0].name}), but torch {survey.packages.get('torch')} is a build without CUDA",
            f"install torch's CUDA build (see pytorch.org/get-started); {meanwhile}",
        )
    if survey.gpus and "CUDA_VISIBLE_DEVICES" in survey.variables:
        shown = survey.variables["CUDA_VISIBLE_DEVICES"]
        return Advice(f"torch sees no GPU: CUDA_VISIBLE_DEVICES is {shown!r}", f"unset CUDA_VISIBLE_DEVICES; {meanwhile}")
    if survey.gpus:
        return Advice(
            f"torch was built for CUDA {survey.torch_cuda}, and cannot use the GPU through driver {survey.gpus[0].driver}",
            f"update the NVIDIA driver, or install a torch built for an older CUDA; {meanwhile}",
        )
    return Advice(
        "there is no NVIDIA GPU (or no driver: nvidia-smi names none)",
        f"run on a machine with one of compute capability 8.0 or newer; {meanwhile}",
    )


def _object_advice(survey: Survey) -> list[Advice]:
    kernel_object, first = survey.cuda_object, next((gpu.capability for gpu in survey.gpus), "this GPU's")
    if not kernel_object.built:
        nvcc = next(tool for tool in survey.tools if tool.name == "nvcc")
        if nvcc.lack:
            running = [report.name for report in survey.engines if report.device == "cuda" and report.serves]
            return [
                Advice(
                    f"the kernels are not compiled ahead of time; calls go to engine {running[0] if running else 'torch'}",
                    f"{nvcc.lack}; then `pip install .`. Or compile at run time: `{install_command('cupy', survey)}`",
                )
            ]
        return [Advice("the kernels are not compiled, though nvcc is here", "`pip install .` in the source tree builds them")]
    if kernel_object.error:
        return [Advice(f"the kernel object does not load: {kernel_object.error}", "build it again here: `pip install .`")]
    conclusions = []
    if kernel_object.stale:
        conclusions.append(
            Advice(
                f"the kernel object lacks {len(kernel_object.stale)} of this version's kernels, such as {kernel_object.stale[0]}",
                "build it again, for this GPU: `pip install .` (or `make cuda` in the source tree)",
            )
        )
    if kernel_object.unloadable:
        conclusions.append(
            Advice(
                f"{len(kernel_object.unloadable)} of {kernel_object.kernels} compiled kernels do not run on this GPU: "
                f"{kernel_object.refusal} (e.g. {kernel_object.unloadable[0]})",
                f"build for it: `TORCH_CUDA_ARCH_LIST={first} pip install .`; if the driver is too old, update it",
            )
        )
    return conclusions


def _machine_advice(survey: Survey) -> list[Advice]:
    conclusions = []
    for index, gpu in enumerate(survey.gpus):
        if float(gpu.capability) < 8:
            conclusions.append(
                Advice(f"GPU {index} ({gpu.name}) has compute capability {gpu.capability}", "the kernels need 8.0 or newer")
            )
        if (gpu.busy_percent or 0) > 20:
            conclusions.append(
                Advice(f"GPU {index} is already {gpu.busy_percent}% busy", "`nvidia-smi` names the processes that use it")
            )
        elif gpu.name not in survey.measured_gpus:
            conclusions.append(
                Advice(
                    f"no convolution was measured on a GPU of this kind ({gpu.name}): variants and tiles are chosen by a model",
                    "`make gpu` in the sources measures the most telling ones, `python -m benchmarks choices --write` any",
                )
            )
        if gpu.mig:
            conclusions.append(Advice(f"GPU {index} is split (MIG)", "a slice has fewer multiprocessors, and less bandwidth"))
    ieee = [op for op, precision in survey.precision.items() if precision == "ieee"]
    if ieee:
        conclusions.append(
            Advice(
                f"fp32 products of {' and '.join(ieee)} are computed in full fp32, without tensor cores",
                'if TF32\'s 10-bit mantissa will do: `torch.backends.cudnn.conv.fp32_precision = "tf32"` (`.rnn` likewise)',
            )
        )
    return conclusions


def _environment_advice(survey: Survey) -> list[Advice]:
    slow = {
        "CUDA_LAUNCH_BLOCKING": "every launch waits for the GPU",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "every allocation goes to the driver",
    }
    conclusions = [
        Advice(f"{name} is set: {effect}", f"unset {name}")
        for name, effect in slow.items()
        if survey.variables.get(name, "0") not in ("", "0")
    ]
    chosen = survey.variables.get("TORCH_UNROLL_ENGINE", "auto")
    if chosen not in ("", "auto", NAMES[0]):
        conclusions.append(
            Advice(f"TORCH_UNROLL_ENGINE names engine {chosen}, whatever else could run", "unset it, or pass engine=")
        )
    return conclusions


def install_command(engine: str, survey: Survey) -> str:
    """The command that installs an engine that compiles at run time, for the CUDA version that torch was built for."""
    release = (survey.torch_cuda or "13").partition(".")[0]
    packages = {"cupy": f"'cupy-cuda{release}x[ctk]' 'cuda-bindings=={release}.*'", "numba": f"'numba-cuda[cu{release}]'"}
    return f"pip install {packages[engine]}"


def text(survey: Survey) -> str:
    """A survey and its conclusions as text."""
    built_for = f"CUDA {survey.torch_cuda}" if survey.torch_cuda else "no CUDA"
    packages = ", ".join(f"{name} {version}" for name, version in survey.packages.items() if name != "torch")
    lines = [
        f"torch-unroll {survey.version}, kernels {survey.kernel_digest}",
        f"Python {survey.python}, torch {survey.packages.get('torch', 'unknown')} ({built_for}), {packages}",
        "",
    ]
    lines += [
        f"GPU {index}: {gpu.name}, capability {gpu.capability}, driver {gpu.driver}, {gpu.memory_mib} MiB"
        for index, gpu in enumerate(survey.gpus)
    ] or ["GPU: none"]
    lines += [f"{tool.name}: {tool.lack or f'{tool.version} ({tool.path})'}" for tool in survey.tools]
    lines += [f"{name}={value}" for name, value in survey.variables.items()]
    lines += ["", "Compiled kernels"]
    for kind, remedy, kernel_object in (
        ("CUDA", "`pip install .` where nvcc is (`make cuda` in the source tree)", survey.cuda_object),
        ("emulated, for tests on CPU tensors", "`make emulated` in the source tree", survey.emulated_object),
    ):
        lines.append(f"  {kind}: {_object_text(kernel_object, remedy)}")
    lines += ["", "Engines, in the order in which engine=None tries them"]
    for report in survey.engines:
        served = "; ".join(f"{family} ({', '.join(dtypes)})" for family, dtypes in report.serves.items())
        lines.append(f"  {report.name} on {report.device}: {served or 'no'}")
        lines += [f"      {reason}" for reason in report.reasons]
    conclusions = advice(survey)
    lines += ["", "Why is it not faster here?"]
    for number, conclusion in enumerate(conclusions, 1):
        lines += [f"  {number}. {conclusion.finding}", f"     -> {conclusion.remedy}"]
    if not conclusions:
        lines.append("  Nothing found. `torch_unroll.explain(op, ...)` tells which kernel serves a call, and why.")
    return "\n".join(lines)


def _object_text(kernel_object: KernelObject, remedy: str) -> str:
    if not kernel_object.built:
        return f"not built: {remedy}"
    if kernel_object.error:
        return f"{kernel_object.path} does not load: {kernel_object.error}; build it again: {remedy}"
    stale = f", {len(kernel_object.stale)} of this version missing; build it again: {remedy}" if kernel_object.stale else ""
    return f"{kernel_object.kernels} kernels in {kernel_object.path}{stale}"


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_unroll doctor",
        description="Tells what is installed, which engines can run here (and what would make the others run), what the compiled "
        "kernels are worth on this GPU, and what keeps calls from being faster.",
        epilog="An engine is asked for by name with engine='cuda' in a call, torch_unroll.use_engine('cuda') around calls, or "
        "TORCH_UNROLL_ENGINE=cuda in the environment; a named engine never falls back to another.",
    )
    parser.add_argument("--json", action="store_true", help="everything found, as JSON, for programs and bug reports")
    options = parser.parse_args(arguments)
    survey = examine_machine()
    if options.json:
        conclusions = [{"problem": conclusion.finding, "remedy": conclusion.remedy} for conclusion in advice(survey)]
        print(json.dumps({**asdict(survey), "advice": conclusions}, indent=2))
    else:
        print(text(survey))
    return 0
