"""Every rule of the style check reports a planted fault, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.style import check

MEANINGLESS = "does not say what the value is"


def reported(path: str, text: str) -> list[tuple[int, str]]:
    return list(check.faults(Path(path), text))


def assert_one_fault(path: str, text: str, line: int, message: str) -> None:
    ((fault_line, fault_message),) = reported(path, text)
    assert fault_line == line
    assert message in fault_message


@pytest.mark.parametrize(
    "statement",
    [
        "each = 1",
        "for found in (): pass",
        "rows = [of for of in ()]",
        "given: int = 1",
        "(a, *told) = ()",
        "if (taken := 1): pass",
        "def passed(): pass",
        "async def passed(): pass",
        "class of: pass",
        "def f(open_): pass",
        "def f(*each, **options): pass",
        "f = lambda each: 0",
        "rows.found = 1",
        "class Row:\n        found: int",
        "import numpy as of",
        "from numpy import nan as given",
        "with rows as found: pass",
        "match rows:\n        case [found, 1]: pass",
        "match rows:\n        case [1, *found]: pass",
        "match rows:\n        case {1: 1, **found}: pass",
    ],
)
def test_meaningless_names_in_python(statement: str) -> None:
    text = f"if True:\n    {statement}\n"
    (fault,) = reported("pyext/torch_unroll/shapes.py", text)
    assert MEANINGLESS in fault[1]
    assert fault[0] in (2, 3)


def test_using_a_name_of_another_library_is_no_fault() -> None:
    assert not reported("tests/test_x.py", "from hypothesis import strategies\nrows = library.found(each=1).of\n")


@pytest.mark.parametrize(
    "declaration",
    [
        "int found;",
        "const Shape& of = shape;",
        "Axis vertical(const Conv2dShape& of) {}",
        "for (const float& each : values) {}",
        "std::vector<int> given(3);",
        "float value = 1, found = 2;",
        "int value, found;",
        "void fill(float (&found)[4]);",
        "const auto [row, found] = place;",
        "auto call = [&, found = 1] {};",
        "struct found {};",
        "using found = int;",
        "#define found 1",
        "template <class... of>",
        "bool passed() const;",
    ],
)
def test_meaningless_names_in_cpp(declaration: str) -> None:
    text = f'// each found\nconst char* text = "int found; // int of";\n{declaration}\n'
    assert_one_fault("kernels/cuda/rnn/step.cuh", text, 3, MEANINGLESS)
    assert not reported("docs/example.cpp", text)


def test_cpp_code_without_a_declaration_is_no_fault() -> None:
    lines = [
        "int f() {",
        "  /* int found; */",
        "  return found;",
        "  call(1'000, row.found, a * found, b && found, 'a');",
        "  if (a < found) found = 2;",
        "}",
    ]
    text = "\n".join(lines)
    assert not reported("tests/emulator/runtime/mma.cpp", text)


def handler(name: str) -> str:
    return f"try:\n    pass\nexcept ValueError as {name}:\n    pass\n"


@pytest.mark.parametrize("name", ["problem", "e", "errors", "terror"])
def test_exceptions_with_another_name(name: str) -> None:
    assert_one_fault("setup.py", handler(name), 3, f"bound as '{name}'")


@pytest.mark.parametrize("name", ["error", "_", "first_error"])
def test_exceptions_with_an_expected_name(name: str) -> None:
    assert not reported("setup.py", handler(name))


def test_long_functions() -> None:
    body = "    pass\n" * (check.FUNCTION_LINES - 2) + "    return 1\n"
    assert not reported("kernels/table.py", f"@cache\ndef f():\n{body}")
    assert not reported("kernels/table.py", f'@cache\ndef f():\n    """Text.\n\n    More.\n    """\n{body}')
    assert_one_fault("kernels/table.py", f"@cache\ndef f():\n    pass\n{body}", 2, f"has {check.FUNCTION_LINES + 1} lines")


@pytest.mark.parametrize("path", ["benchmarks/cli.py", "kernels/cuda/rnn/step.cuh"])
def test_long_files(path: str) -> None:
    assert not reported(path, "\n" * check.FILE_LINES)
    assert_one_fault(path, "\n" * (check.FILE_LINES + 1), 1, f"has {check.FILE_LINES + 1} lines")


@pytest.mark.parametrize(
    "statement",
    [
        "from torch_unroll.rnn import _checked",
        "from .rnn import _checked",
        "from tests.planted import _copy as copy",
        "import torch_unroll.rnn as rnn; rnn._checked()",
        "import torch_unroll; torch_unroll.engines.cuda._object",
        "from torch_unroll.engines import cuda; cuda._object.cache_clear()",
        "from torch_unroll.engines import cuda; cuda._object = None",
    ],
)
def test_private_names_of_other_modules(statement: str) -> None:
    assert_one_fault("tests/rnn/test_rnn.py", f"\n{statement}\n", 2, "a private name of another module")
    assert not reported("pyext/torch_unroll/rnn.py", statement)


@pytest.mark.parametrize(
    "statement",
    [
        "from torch.testing import _internal",
        "from torch_unroll import __version__",
        "import torch; torch._dynamo.reset()",
        "from torch_unroll.kernels.shapes import RnnShape; RnnShape._fields_",
        "from torch_unroll.kernels import table; table.LaunchPlan._replace()",
        "self._state = 1",
    ],
)
def test_names_that_a_test_may_use(statement: str) -> None:
    assert not reported("tests/rnn/test_rnn.py", statement)


def test_the_status_and_the_lines_of_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("found = 1\n")
    (tmp_path / "kernels" / "b.cuh").write_text("int value;\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "repository_files", lambda: [Path("kernels/a.py"), Path("kernels/b.cuh")])
    assert check.main([]) == 1
    assert capsys.readouterr().out == f"kernels/a.py:1: the name 'found' {MEANINGLESS}\n"
    assert check.main([str(tmp_path / "kernels" / "b.cuh")]) == 0
    assert not capsys.readouterr().out


def test_the_files_of_this_repository() -> None:
    if not (check.ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    paths = check.repository_files()
    assert Path("tests/style/check.py") in paths
    assert Path("kernels/cuda/launch.cu") in paths
    assert not [path for path in paths if path.is_absolute()]
