"""Tests the documentation: the files and names that it mentions exist, local links resolve, examples run, and pages render."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from torch_unroll.engines.cuda import library_path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: The pages to test. The changelog is left out, because it also names files of the past.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
}

PATH = re.compile(r"(?<![\w/.:-])(?:kernels|pyext|tests|benchmarks|examples|docs)/[\w./<>*-]*[\w>*/]")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PYTHON_BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def _named_files(text: str) -> set[str]:
    """Returns the paths that a page names, without those that have a placeholder or a wildcard."""
    return {path for path in PATH.findall(text) if not re.search(r"[<>*]", path)}


def _anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings, formed as GitHub and MyST form them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    missing = {path for path in _named_files(PAGES[page]) if not (ROOT / path).exists()}
    assert missing == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target in LINK.findall(PAGES[page]):
        if "://" in target:
            assert re.fullmatch(r"https?://[\w.-]+(/[\w./%#~-]*)?", target), target
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path.read_text()), target


def _rows_with_names() -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Returns the rows of the tables of docs/architecture.md: the question, the files, and the names to look for in the files."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| ?(.*?) ?\|$", PAGES["docs/architecture.md"], re.MULTILINE)
    code = re.compile(r"`([^`]+)`")
    return [(question, tuple(code.findall(files)), tuple(code.findall(names))) for question, files, names in rows]


def _missing(names: Iterable[str], files: Iterable[str]) -> set[str]:
    """Returns the names that occur in none of the files; the empty set if there are no files."""
    texts = [(ROOT / file).read_text() for file in files]
    return {name for name in names if texts and not any(re.search(rf"\b{name}\b", text) for text in texts)}


def test_the_architecture_page_names_what_is_in_its_files() -> None:
    rows = [(files, names) for _, files, names in _rows_with_names() if files]
    assert len(rows) > 40
    assert {name for files, names in rows for name in _missing(names, files)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_a_name_that_a_page_puts_in_a_file_is_there(page: str) -> None:
    for name, file in re.findall(r"`(\w+)`\s+in\s+`([\w/]+/[\w.]+)`", PAGES[page]):
        assert _missing([name], [file]) == set(), file


@pytest.mark.parametrize(
    "question", ["wgmma epilogue", "pooling predicate", "BPTT formula", "Where is the cost model", "shadow memory"]
)
def test_the_architecture_page_answers(question: str) -> None:
    assert [files for text, files, _ in _rows_with_names() if question in text and files]


def test_the_list_of_built_ins_is_what_the_emulator_provides() -> None:
    listed = PAGES["CONTRIBUTING.md"].partition("<!-- list: built-ins -->")[2].partition("<!-- end: built-ins -->")[0]
    headers = (ROOT / "tests" / "emulator" / "include").glob("**/*.h")
    provided = "\n".join(path.read_text() for path in headers if "platform" not in path.parts)
    names = set(re.findall(r"`(__\w+|atomic\w+|\w+Idx|\w+Dim|warpSize|clock64|rsqrtf?|min|max)`", listed))
    assert len(names) > 60
    assert {name for name in names if not re.search(rf"\b{name}\b", provided)} == set()
    functions = set(re.findall(r"\b(__\w+)\(", re.sub(r"__attribute__\(\(.*?\)\)", "", provided)))
    assert functions - names == {"__align__", "__launch_bounds__"}


def _examples(text: str) -> list[str]:
    """Returns the Python blocks of a page, in order, without the indentation of a list that contains them."""
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in PYTHON_BLOCK.findall(text)]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if page != "README.md" and _examples(text)])
def test_examples_run_in_order(page: str) -> None:
    if page == "docs/emulator.md" and not library_path("cpu").exists():
        pytest.skip("the emulated kernels are not built: make emulated")
    namespace: dict[str, object] = {}
    for example in _examples(PAGES[page]):
        exec(example, namespace)


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = PAGES["docs/index.md"].partition("```{toctree}")[2].partition("```")[0]
    listed = {line for line in contents.split() if not line.startswith(":")}
    assert listed == {path.stem for path in DOCS.glob("*.md")} - {"index"}


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("sphinx", "myst_parser", "furo")),
    reason="rendering the documentation needs `pip install sphinx myst-parser furo`",
)
def test_the_documentation_renders_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", str(DOCS), str(tmp_path)]
    path = os.pathsep.join(filter(None, (str(ROOT / "pyext"), os.environ.get("PYTHONPATH"))))
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "torch_unroll.conv2d" in (tmp_path / "api.html").read_text()
