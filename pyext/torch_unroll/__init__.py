"""Hand-written GPU kernels for convolution, max pooling and recurrence, as drop-in PyTorch ops.

    import torch_unroll as tu

Functions that are named like torch's accept the same arguments and `engine=`; `tu.nn` has the modules of
torch.nn; those for 2-D convolution, 2-D max pooling, unfold, fold and Elman RNNs run on these kernels.
"""

from torch_unroll import models, nn
from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.engines import use_engine
from torch_unroll.explain import available_engines, explain
from torch_unroll.max_pool2d import max_over_time, max_pool2d
from torch_unroll.override import override
from torch_unroll.replace import replace, restore
from torch_unroll.rnn import rnn, rnn_cell
from torch_unroll.unfold import fold, unfold
from torch_unroll.warmup import warmup
from torch_unroll.workspace import conv2d_workspace

__version__ = "0.1.0"

__all__ = [
    "available_engines",
    "conv2d",
    "conv2d_workspace",
    "conv_transpose2d",
    "explain",
    "fold",
    "max_over_time",
    "max_pool2d",
    "models",
    "nn",
    "override",
    "replace",
    "restore",
    "rnn",
    "rnn_cell",
    "unfold",
    "use_engine",
    "warmup",
]
