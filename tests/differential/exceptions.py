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

    cases: Pattern
    raises: type[Exception]
    reason: str


@dataclass(frozen=True)
class Fault:
    """Cases that come out wrong, and how; `crashes` are not tried."""

    cases: Pattern
    what: str
    crashes: bool = False


_NAMED = "a named engine never falls back to torch's operator, and has kernels for floating-point numbers alone"
_PLACES = "torch answers by shapes alone where one of the tensors has no data; ours names the two devices"

EXCEPTIONS = (
    Known(
        Pattern("MaxPool2d-*|max_pool2d|conv2d|unfold|fold|LocallyConnected2d", "*", "*integer_inputs", "*"), RuntimeError, _NAMED
    ),
    Known(
        Pattern(
            "Conv2d-grouped|Conv2d-same|MaxPool2d-*|max_pool2d|conv2d|conv_transpose2d|unfold|fold", "*", "boolean_inputs", "*"
        ),
        RuntimeError,
        _NAMED,
    ),
    Known(
        Pattern("Conv2d-*|conv_transpose2d", "*", "weights_on_meta|inputs_on_meta", "*"),
        RuntimeError,
        _PLACES,
    ),
    Known(Pattern("conv2d", "*", "further_inputs_on_meta", "*"), RuntimeError, _PLACES),
    Known(
        Pattern("rnn", "*", "a_dimension_too_few", "*"),
        RuntimeError,
        "torch.rnn_tanh leaves the check of ranks to nn.RNN, and broadcasts",
    ),
    Known(
        Pattern("RNN-*|rnn|rnn-*", "*", "output_changed_in_place", "*"),
        RuntimeError,
        "backward starts from the states that were returned, as cuDNN's does; torch's CPU operator keeps a copy of each",
    ),
    Known(
        Pattern("RNN-batch_first", "*", "input_changed_in_place", "*"),
        RuntimeError,
        "the input is kept as it came, where torch's operator keeps a transposed copy",
    ),
    Known(Pattern("RNN-packed", "*", "zero_batch", "*"), RuntimeError, "each step of a PackedSequence has a sample"),
    Known(
        Pattern("RNN-packed", "*", "a_further_input_too_short", "*"),
        RuntimeError,
        "torch leaves rows unread that batch_sizes does not count",
    ),
)

#: To be mended: empty before it is released.
FAULTS = (
    Fault(
        Pattern("*", "*", "saved_tensors_of_another_*|saved_tensors_cut_short", "cuda"),
        "the derivatives' operators read what reaches them unchecked",
        crashes=True,
    ),
    Fault(
        Pattern(
            "Conv2d-[!r]*|MaxPool2d-*|RNN-*|RNNCell-*|conv2d|conv_transpose2d|max_pool2d|rnn|rnn-sigmoid|rnn_cell|max_over_time-lengths",
            "*",
            "saved_tensors_of_another_dtype",
            "torch",
        ),
        "the derivatives' operators compute with saved tensors of another dtype",
    ),
    Fault(
        Pattern("Conv2d-*|RNN-*|conv2d|conv_transpose2d|rnn|rnn-sigmoid", "*", "saved_tensors_of_another_rank", "torch"),
        "the derivatives' operators compute with saved tensors of another rank, or raise something else than a RuntimeError",
    ),
    Fault(Pattern("MaxPool2d-plain", "*", "saved_tensors_cut_short", "torch"), "offsets of another extent than the gradient's"),
    Fault(
        Pattern("network", "*", "autocast_float16|autocast_bfloat16|autocast_without_gradients|autocast_low_inputs", "*"),
        "the checks run before autocast makes dtypes alike",
    ),
    Fault(
        Pattern("Conv2d-plain|Conv2d-grouped|Conv2d-same|Conv2d-unbatched|conv_transpose2d", "*", "autocast_low_inputs", "*"),
        "the checks run before autocast makes dtypes alike",
    ),
    Fault(Pattern("rnn-sigmoid", "*", "autocast_low_inputs", "*"), "two 16-bit dtypes meet inside the recurrence"),
    Fault(
        Pattern("RNN-*|RNNCell-*|rnn|rnn-*|rnn_cell", "*", "autocast_double_inputs", "*"),
        "dtypes that autocast does not make alike are mixed, where torch raises",
    ),
    Fault(Pattern("rnn_cell", "*", "a_dimension_too_few", "*"), "a RuntimeError where torch raises an IndexError"),
    Fault(
        Pattern("RNN-plain|RNN-batch_first|RNN-packed|RNN-hx|RNN-relu|rnn|rnn-*|classifier", "*", "batched_gradients", "*"),
        "the recurrence's backward has no batching rule in the vmap of is_grads_batched",
    ),
    Fault(
        Pattern("MaxPool2d-*|RNN-*|RNNCell-*|max_pool2d|rnn|rnn_cell|network|classifier", "override", "checkpointed", "*"),
        "the recomputation runs without the mode",
    ),
    Fault(
        Pattern("RNN-plain|RNN-b*|RNN-hx|RNN-relu|RNNCell-*|rnn|rnn-*|rnn_cell|classifier", "*", "meta_device", "*"),
        "autocast is asked about a device that has none",
    ),
    Fault(Pattern("Conv2d-grouped", "*", "output_changed_in_place", "torch"), "the output is a view made inside a Function"),
    Fault(
        Pattern("RNN-packed", "*", "under_another_default_device|under_default_device_meta_for_good", "torch"),
        "a tensor is made on the default device",
    ),
    Fault(
        Pattern("RNN-packed", "*", "under_another_default_device|under_default_device_meta_for_good", "cuda"),
        "a tensor is made on the default device",
        crashes=True,
    ),
    Fault(
        Pattern(
            "Conv2d-*|MaxPool2d-*|RNN-plain|RNN-b*|RNN-relu|RNNCell-relu|network|conv2d|conv_transpose2d|unfold|fold"
            "|max_pool2d|rnn|rnn_cell",
            "replace|direct",
            "traced_by_fx",
            "*",
        ),
        "a proxy is refused, and the modules are no leaves",
    ),
    Fault(Pattern("max_over_time-lengths", "*", "batch_of_one", "cuda"), "lengths are not heeded in a batch of one"),
)


def known(case: Case) -> Known | None:
    """The entry that a case has among the exceptions, if any."""
    return next((entry for entry in EXCEPTIONS if entry.cases.matches(case)), None)


def fault(case: Case) -> Fault | None:
    """The entry that a case has among the faults, if any."""
    return next((entry for entry in FAULTS if entry.cases.matches(case)), None)
