"""README's examples run, and its generated parts are what the code says now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_examples_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for example in EXAMPLES:
        exec(example, namespace)
    printed = capsys.readouterr().out
    promised = re.findall(r"print\(.*\)  # (\[.*\])", README)
    assert promised
    assert all(text in printed for text in promised)
