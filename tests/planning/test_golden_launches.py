"""Every call of a large random sample launches what it launched when the digests were stored."""

from __future__ import annotations

import pytest

from tests.planning.golden import CALLS, GROUP, OPS, digest, kept


@pytest.mark.parametrize("op", OPS)
def test_the_same_launches(op: str) -> None:
    expected = kept()[op]
    assert len(expected) * GROUP == CALLS
    changed = [group * GROUP for group, known in enumerate(expected) if digest(op, group)[0] != known]
    assert not changed, f"see python -m tests.planning.golden --show {op} N, N from {changed[0]} to {changed[0] + GROUP - 1}"
