"""Which cases exist, and which of them belong to the quick suite."""

from __future__ import annotations

from tests.differential.harness import Case
from tests.differential.subjects import BY_NAME, SUBJECTS
from tests.differential.transformations import TRANSFORMATIONS
from torch_unroll.testing import targets

#: The engines that accept CPU tensors here.
ENGINES = tuple(target.engine for target in targets("conv2d") if target.device.type == "cpu")

CASES = tuple(
    Case(subject.name, way, transformation, engine)
    for subject in SUBJECTS
    for way in subject.ways
    for transformation in TRANSFORMATIONS
    for engine in ENGINES
)

#: One subject of each family of ops, for expensive transformations.
_FIRST = ("Conv2d-plain", "MaxPool2d-plain", "RNN-plain")

#: The subjects to which the quick suite applies every transformation that is not `dear`, on engine `torch`: nearly every op has
#: one, and some ops have several, with other options (groups, an initial state, packed sequences, lengths).
_THOROUGH = (
    *_FIRST,
    "Conv2d-grouped",
    "RNN-hx",
    "RNN-packed",
    "RNNCell-plain",
    "conv_transpose2d",
    "fold",
    "rnn-lengths",
    "max_over_time-lengths",
    "network",
)

#: Transformations whose outcome may depend on the way into torch_unroll. All but `plain` call the model in another context, or
#: copy it.
_BY_WAY = ("plain", "checkpointed", "checkpointed_reentrantly", "deepcopied", "pickled", "functional_gradient")

#: Transformations whose outcome may depend on the engine and on the subject's options, mostly because kernels get other dtypes,
#: extents or layouts.
_TELLING = (
    "plain",
    "autocast_bfloat16",
    "batch_of_one",
    "channels_last",
    "double_backward",
    "saved_tensors_of_another_dtype",
    "saved_tensors_cut_short",
    "a_further_input_too_long",
    "a_further_input_too_short",
    "strided_inputs",
    "under_another_default_device",
    "zero_batch",
)


def is_slow(case: Case) -> bool:
    """Whether a case belongs only to the long suite."""
    subject, transformation = BY_NAME[case.subject], TRANSFORMATIONS[case.transformation]
    first_way = case.way == subject.ways[-1]
    if subject.large:
        return not (first_way and case.engine == "torch" and case.transformation == "plain")
    if transformation.dear:
        return not (first_way and case.engine == "torch" and case.subject in _FIRST)
    if first_way and case.transformation in _TELLING:
        return False
    if case.engine != "torch" or case.subject not in _THOROUGH:
        return True
    return not (first_way or case.transformation == "plain" or (case.subject in _FIRST and case.transformation in _BY_WAY))
