"""Tests what is built, shipped and installed, and the messages about missing tools.

A stand-in takes the place of nvcc, so that the tests take seconds and need no CUDA toolkit. tests/compile runs the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from torch_unroll import kernels

ROOT = Path(__file__).resolve().parents[2]
#: The files of a checkout that building the package needs.
SOURCE_TREE = "kernels pyext setup.py pyproject.toml MANIFEST.in LICENSE README.md CHANGELOG.md CONTRIBUTING.md".split()

STAND_IN = """#!/bin/sh
case " $* " in
  *" --version "*) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
  *" --list-gpu-arch "*) printf 'compute_80\\ncompute_90\\n' ;;
  *) while [ $# -gt 0 ]; do
       case "$1" in -o) : > "$2" ;; -MF) echo "x:" > "$2" ;; *.cu) test -s "$1" || exit 1 ;; esac
       shift
     done ;;
esac
"""

pytest.importorskip("setuptools", minversion="77", reason="building the package needs setuptools 77")
pytest.importorskip("build", reason="building the package needs `pip install build`")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copies SOURCE_TREE without built files; returns the copy's folder."""
    tree = tmp_path / "checkout"
    tree.mkdir()
    for name in SOURCE_TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=shutil.ignore_patterns("lib", "__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tree / name)
    return tree


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a CUDA toolkit whose nvcc writes empty files; returns the path of that nvcc."""
    compiler = tmp_path / "toolkit" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(STAND_IN.format(release="13.0"))
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX 9.0a")
    return compiler


def package(tree: Path, *kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", *kind, "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree, check=False)


def built(tree: Path, *kind: str) -> Path:
    process = package(tree, *kind)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = (tree / "dist").iterdir()
    return path


def device_code(folder: Path = kernels.SOURCES) -> set[str]:
    """Returns the names of the kernels' sources and of the tables of measured choices."""
    shipped = {".cu", ".cuh", ".h", ".py", ".json"}
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in shipped}


def test_a_wheel_without_nvcc_is_pure_and_carries_every_source(tree: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    wheel = built(tree, "--wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree / "installed")
    installed = tree / "installed" / "torch_unroll"
    assert device_code(installed / "kernels" / "cuda") == device_code()
    modules = {path.relative_to(tree / "pyext").as_posix() for path in (tree / "pyext" / "torch_unroll").rglob("*.py")}
    assert modules <= {path.relative_to(tree / "installed").as_posix() for path in installed.rglob("*")}
    script = "import sys; sys.path.insert(0, 'installed'); from torch_unroll import kernels; print(kernels.digest())"
    digest = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tree, check=True).stdout.strip()
    assert digest == kernels.digest()


def test_without_nvcc_the_build_says_what_is_missing(tree: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    messages = package(tree, "--wheel").stderr
    assert "without compiled CUDA kernels: nvcc is not found under CUDA_HOME=/nowhere: install the CUDA toolkit" in messages


@pytest.mark.usefixtures("nvcc")
def test_a_wheel_with_nvcc_carries_the_object_for_every_python(tree: Path) -> None:
    wheel = built(tree, "--wheel")
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    assert "torch_unroll/lib/libtorch_unroll_cuda.so" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.usefixtures("nvcc")
def test_the_object_can_be_left_out(tree: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_UNROLL_SKIP_CUDA", "1")
    assert built(tree, "--wheel").name.endswith("-py3-none-any.whl")


def test_a_wheel_can_be_built_from_the_sdist(tree: Path, nvcc: Path) -> None:
    sdist = built(tree, "--sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tree / "unpacked", filter="data")
    (unpacked,) = (tree / "unpacked").iterdir()
    assert not [path for path in unpacked.rglob("*") if path.suffix in {".so", ".pyc"}]
    assert {"LICENSE", "CHANGELOG.md", "README.md"} <= {path.name for path in unpacked.iterdir()}
    wheel = built(unpacked, "--wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert "torch_unroll/lib/libtorch_unroll_cuda.so" in names
    shipped = {name.removeprefix("torch_unroll/kernels/cuda/") for name in names if name.startswith("torch_unroll/kernels/cuda/")}
    assert device_code() <= shipped


@pytest.mark.parametrize(
    ("release", "architectures", "sentence"),
    [
        ("11.8", "8.0", "nvcc 11.8 is too old, C++20 needs 12.0"),
        ("13.0", "10.0", "cannot compile for 10.0: install a newer CUDA toolkit"),
        ("13.0", "7.5", "TORCH_CUDA_ARCH_LIST names 7.5, and the kernels need 8.0 or newer"),
        ("13.0", "Amper", "TORCH_CUDA_ARCH_LIST names 'Amper': expected entries such as 8.0, 9.0a or 10.0+PTX"),
    ],
)
def test_an_impossible_build_stops_with_one_sentence(tree, nvcc, monkeypatch, release, architectures, sentence) -> None:
    nvcc.write_text(STAND_IN.format(release=release))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    process = package(tree, "--wheel")
    assert process.returncode != 0
    (line,) = [line for line in process.stderr.splitlines() + process.stdout.splitlines() if line.startswith("torch-unroll: ")]
    assert sentence in line
    assert "TORCH_UNROLL_SKIP_CUDA=1" in line


def test_requirements_are_pinned_and_name_no_host() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = line.partition("#")[0].strip()
        assert not requirement or re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", requirement), line


def commands_of_make(*arguments: str) -> str:
    process = subprocess.run(["make", "--dry-run", *arguments], capture_output=True, text=True, cwd=ROOT, check=True)
    return process.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_uses_an_existing_environment_without_pip() -> None:
    for target in ("test", "bench", "lint", "docs", "compile-check", "test-all"):
        commands = commands_of_make(target, "VENV=", "PYTHON=python3.11")
        assert "pip" not in commands
        assert "python3.11 -m" in commands


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_installs_once(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    assert "pip install" in commands_of_make("test", f"VENV={environment}")
    environment.mkdir()
    shutil.copy(ROOT / "requirements.txt", environment)
    assert "pip install" not in commands_of_make("test", f"VENV={environment}")
