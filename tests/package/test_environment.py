"""Tests the environment variables: paths are read as a shell reads them, lists of architectures as torch's extension
builder reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_unroll.engines import cuda, nvrtc_cache
from torch_unroll.kernels import build, environment

STAND_IN = """#!/bin/sh
case " $* " in
  *" --version "*) echo "Cuda compilation tools, release 13.0, V13.0.1" ;;
  *" --list-gpu-arch "*) for number in 75 80 86 87 89 90 100 103 110 120 121; do echo compute_$number; done ;;
esac
"""


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of a CUDA toolkit whose stand-in nvcc lists architectures from 7.5 to 12.1."""
    compiler = tmp_path / "toolkit" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(STAND_IN)
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setattr(build, "present_architectures", lambda: "")
    build.note.cache_clear()
    return tmp_path / "toolkit"


@pytest.mark.parametrize(
    ("listed", "targets", "left_out"),
    [
        ("7.0 7.5 8.0 8.6 9.0+PTX", ["80", "86", "90a+PTX"], "7.0, 7.5"),
        ("5.2;6.1;8.0;8.6+PTX", ["80", "86+PTX"], "5.2, 6.1"),
        ("7.5+PTX, 8.9", ["89"], "7.5+PTX"),
        ("Volta;Turing;Ampere", ["80", "86+PTX"], "7.0+PTX, 7.5+PTX"),
        ("Ampere+Tegra Hopper", ["87", "90a+PTX"], None),
        ("Maxwell;Blackwell", ["100", "103", "120", "121+PTX"], "5.0, 5.2+PTX"),
        ("8.0,8.0+PTX;9.0 9.0a", ["80+PTX", "90a"], None),
        (" ;8.0 ; ", ["80"], None),
        ("native", ["80+PTX", "90a"], None),
        (" ", ["80+PTX", "90a"], None),
        ("", ["80+PTX", "90a"], None),
    ],
)
def test_a_list_of_architectures(toolkit, monkeypatch, capsys, listed: str, targets: list[str], left_out: str | None) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.cuda_targets() == build.cuda_targets() == targets
    note = f"torch-unroll: TORCH_CUDA_ARCH_LIST: {left_out} left out: the kernels need 8.0 or newer\n" if left_out else ""
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ("7.5+PTX", "names 7.5+PTX, and the kernels need 8.0 or newer"),
        ("5.2;6.1", "names 5.2, 6.1, and the kernels need 8.0 or newer"),
        ("Volta Pascal", "names 7.0+PTX, 6.0, 6.1+PTX, and the kernels need 8.0 or newer"),
        ("8.0;volta", "names 'volta': expected entries such as 8.0, 9.0a or 10.0+PTX"),
        ("8.0;80", "names '80': expected entries such as"),
        ("7.0;native", "names 'native': expected entries such as"),
        ("8.0;13.0", "cannot compile for 13.0"),
    ],
)
def test_a_list_without_a_usable_architecture_is_refused(toolkit, monkeypatch, listed: str, sentence: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(build.BuildError) as error:
        build.cuda_targets()
    assert sentence in str(error.value)


#: Each variable that holds a path, and a function that reads it.
READERS: dict[str, Callable[[], Path]] = {
    "TORCH_UNROLL_CACHE_DIR": nvrtc_cache.folder,
    "XDG_CACHE_HOME": lambda: nvrtc_cache.folder().parent,
    "TORCH_UNROLL_EMULATED": lambda: cuda.library_path("cpu"),
    "CUDA_HOME": lambda: Path(build.find_nvcc()).parents[1],
    "CUDA_PATH": lambda: Path(build.find_nvcc()).parents[1],
    "CXX": lambda: Path(build.find_host_compiler()).parents[1],
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a home folder the current folder; its folder `named` holds a toolkit and a host compiler. Returns the home folder."""
    for variable in READERS:
        monkeypatch.delenv(variable, raising=False)
    for tool, text in {"nvcc": STAND_IN, "compiler": "#!/bin/sh\necho 13.2.0\n"}.items():
        program = tmp_path / "named" / "bin" / tool
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("variable", READERS)
@pytest.mark.parametrize("spelling", ["~/named", "named", "./named", "~/other/../named", "$HOME/named"])
def test_a_path_may_be_relative_or_begin_with_a_tilde(
    places: Path, monkeypatch: pytest.MonkeyPatch, variable: str, spelling: str
) -> None:
    value = spelling.replace("$HOME", str(places))
    monkeypatch.setenv(variable, f"{value}/bin/compiler" if variable == "CXX" else value)
    (places / "other").mkdir()
    path = READERS[variable]()
    assert path.is_absolute()
    assert path.resolve() == (places / "named").resolve()


@pytest.mark.parametrize("variable", READERS)
def test_an_empty_variable_counts_as_unset(places: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("PATH", f"{places / 'named' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    unset = READERS[variable]()
    monkeypatch.setenv(variable, "")
    assert READERS[variable]() == unset


def test_the_first_of_two_variables_counts(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECOND", "/second")
    assert environment.path("FIRST", "SECOND") == Path("/second")
    monkeypatch.setenv("FIRST", "/first")
    assert environment.path("FIRST", "SECOND") == Path("/first")
    assert environment.path("NEITHER") is None


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "CXX"])
def test_an_unknown_home_is_reported(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv(variable, "~nobody-of-that-name/cuda")
    with pytest.raises(build.BuildError, match=f"{variable}: expected a path, got '~nobody-of-that-name/cuda'"):
        READERS[variable]()
