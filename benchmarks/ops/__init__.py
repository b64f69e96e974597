"""The operations that can be measured."""

from benchmarks.cases import Case, Operation
from benchmarks.names import DTYPES, find
from benchmarks.ops.conv2d import Conv2d, ConvTranspose2d, Fold, Unfold
from benchmarks.ops.max_pool2d import MaxOverTime, MaxPool2d
from benchmarks.ops.network import Network
from benchmarks.ops.rnn import Rnn, RnnCell

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (Conv2d(), ConvTranspose2d(), Unfold(), Fold(), MaxPool2d(), MaxOverTime(), Rnn(), RnnCell(), Network())
}


def parse(key: str) -> Case:
    """The case that a key names.

    Raises:
        ValueError: the key is malformed, or names an unknown op, direction, dtype, layout or field of a shape.
    """
    parts = key.split("/")
    if len(parts) != 5:
        raise ValueError(f"case {key!r}: expected OP/DIRECTION/DTYPE/LAYOUT/SHAPE; `python -m benchmarks list` shows them")
    op, direction, dtype, layout, shape = parts
    operation = OPERATIONS[find("op", op, list(OPERATIONS))]
    find("direction", direction, operation.directions)
    find("dtype", dtype, list(DTYPES))
    find("layout", layout, operation.layouts)
    return Case(operation, direction, dtype, layout, operation.Shape.parse(shape))
