"""Tests that README's examples run and print what it promises, and that its generated table agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torch_unroll.tools.support import support_table

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_examples_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for example in EXAMPLES:
        exec(example, namespace)
    printed = capsys.readouterr().out
    promised = re.findall(r"print\(.*\)  # (\[.*\])", README)
    assert promised
    assert all(text in printed for text in promised)


def test_the_table_of_ops_agrees_with_the_code() -> None:
    between = README.partition("<!-- table: support -->")[2].partition("<!-- end: support -->")[0]
    assert between.strip() == support_table(), "run: python -m torch_unroll support, and put its output between README's markers"
