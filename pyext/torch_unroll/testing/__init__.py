"""What tests and benchmarks share: where an engine can be tried here, inputs, and when two results count as equal."""

from torch_unroll.testing.compare import assert_as_accurate, assert_exact
from torch_unroll.testing.samples import raised, sample_results
from torch_unroll.testing.targets import Target, targets

__all__ = ["Target", "assert_as_accurate", "assert_exact", "raised", "sample_results", "targets"]
