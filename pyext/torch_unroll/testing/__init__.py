"""What tests and benchmarks share: the engines that can run here, sample inputs, and criteria for when two results count as
equal."""

from torch_unroll.testing.bounds import assert_within, sum_bound
from torch_unroll.testing.compare import assert_as_accurate, assert_exact
from torch_unroll.testing.samples import raised, sample_results
from torch_unroll.testing.targets import Target, targets

__all__ = ["Target", "assert_as_accurate", "assert_exact", "assert_within", "raised", "sample_results", "sum_bound", "targets"]
