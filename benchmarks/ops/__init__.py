"""The ops that can be measured."""

from benchmarks.ops.conv2d import Conv2d, ConvTranspose2d, Fold, Unfold
from benchmarks.ops.max_pool2d import MaxOverTime, MaxPool2d
from benchmarks.ops.network import Network
from benchmarks.ops.operation import Operation
from benchmarks.ops.rnn import Rnn, RnnCell

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (Conv2d(), ConvTranspose2d(), Unfold(), Fold(), MaxPool2d(), MaxOverTime(), Rnn(), RnnCell(), Network())
}
