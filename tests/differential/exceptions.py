"""The only place for differences from torch that stay: calls that raise where torch does not, or raise something else.

Only an exception can be listed, with its reason. A wrong number, a wrong dtype or a crash cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.differential.harness import Case


@dataclass(frozen=True)
class Pattern:
    """Cases, by shell patterns over their four names; alternatives stand between bars."""

    subject: str
    way: str
    transformation: str
    engine: str

    def matches(self, case: Case) -> bool:
        pairs = ((self.subject, case.subject), (self.way, case.way), (self.transformation, case.transformation))
        return all(
            any(fnmatchcase(name, pattern) for pattern in patterns.split("|"))
            for patterns, name in (*pairs, (self.engine, case.engine))
        )


@dataclass(frozen=True)
class Known:
    """Cases that raise exactly this exception, and why."""

    raises: type[Exception]
    reason: str
    cases: tuple[Pattern, ...]

    def matches(self, case: Case) -> bool:
        return any(pattern.matches(case) for pattern in self.cases)


EXCEPTIONS = (
    Known(
        RuntimeError,
        "a named engine never falls back to torch's operator, and has kernels for floating-point numbers alone",
        (
            Pattern("MaxPool2d-*|max_pool2d|conv2d|unfold|Unfold-*|fold|Fold-*|LocallyConnected2d", "*", "*integer_inputs", "*"),
            Pattern("MaxPool2d-*|max_pool2d|conv2d|unfold|Unfold-*|fold|Fold-*", "*", "complex_inputs", "*"),
            Pattern("Conv2d-grouped|Conv2d-same|ConvTranspose2d-*|MaxPool2d-*|max_pool2d|conv2d", "*", "boolean_inputs", "*"),
            Pattern("conv_transpose2d|unfold|Unfold-*|fold|Fold-*", "*", "boolean_inputs", "*"),
        ),
    ),
    Known(
        RuntimeError,
        "torch answers by shapes alone where one of the tensors has no data; ours names the two devices",
        (
            Pattern("Conv2d-*|ConvTranspose2d-*|conv_transpose2d", "*", "weights_on_meta|inputs_on_meta", "*"),
            Pattern("conv2d", "*", "further_inputs_on_meta", "*"),
        ),
    ),
    Known(
        RuntimeError,
        "backward starts from the states that were returned, as cuDNN's does; torch's CPU operator keeps a copy of each",
        (Pattern("RNN-*|rnn|rnn-*", "*", "output_changed_in_place", "*"),),
    ),
    Known(
        RuntimeError,
        "the input is kept as it came, where torch's operator keeps a transposed copy",
        (Pattern("RNN-batch_first", "*", "input_changed_in_place", "*"),),
    ),
)


def known(case: Case) -> Known | None:
    """The entry that a case has among the exceptions, if any."""
    return next((entry for entry in EXCEPTIONS if entry.matches(case)), None)
