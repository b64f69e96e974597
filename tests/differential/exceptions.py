"""The accepted differences from torch: calls that raise although torch does not, or that raise a different exception.

Only exceptions can be listed here, with a reason; wrong numbers, wrong dtypes and crashes cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.differential.harness import Case


@dataclass(frozen=True)
class Pattern:
    """The cases whose four names match these shell patterns. Bars separate alternative patterns."""

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
    """Cases that raise exactly this exception, and the reason."""

    raises: type[Exception]
    reason: str
    cases: tuple[Pattern, ...]

    def matches(self, case: Case) -> bool:
        return any(pattern.matches(case) for pattern in self.cases)


EXCEPTIONS = (
    Known(
        RuntimeError,
        "a named engine never falls back to torch's operator, and has kernels only for floating-point numbers",
        (
            Pattern("MaxPool2d-*|max_pool2d|conv2d|unfold|Unfold-*|fold|Fold-*|LocallyConnected2d", "*", "*integer_inputs", "*"),
            Pattern("MaxPool2d-*|max_pool2d|conv2d|unfold|Unfold-*|fold|Fold-*", "*", "complex_inputs", "*"),
            Pattern("Conv2d-grouped|Conv2d-same|ConvTranspose2d-*|MaxPool2d-*|max_pool2d|conv2d", "*", "boolean_inputs", "*"),
            Pattern("conv_transpose2d|unfold|Unfold-*|fold|Fold-*", "*", "boolean_inputs", "*"),
        ),
    ),
    Known(
        RuntimeError,
        "torch computes only a shape if one of the tensors is on meta; ours reports that the devices differ",
        (
            Pattern("Conv2d-*|ConvTranspose2d-*|conv_transpose2d", "*", "weights_on_meta|inputs_on_meta", "*"),
            Pattern("conv2d", "*", "further_inputs_on_meta", "*"),
        ),
    ),
    Known(
        RuntimeError,
        "like cuDNN's, backward reads the returned states themselves; torch's CPU operator keeps copies of them",
        (Pattern("RNN-*|rnn|rnn-*", "*", "output_changed_in_place", "*"),),
    ),
    Known(
        RuntimeError,
        "the input itself is saved for backward; torch's operator saves a transposed copy",
        (Pattern("RNN-batch_first", "*", "input_changed_in_place", "*"),),
    ),
)


def known(case: Case) -> Known | None:
    """The entry of a case in `EXCEPTIONS`, or None."""
    return next((entry for entry in EXCEPTIONS if entry.matches(case)), None)
