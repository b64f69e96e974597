"""Loading weights that torchvision publishes, or any others, into networks with its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)

#: A name in the published file of DenseNet-121, which is older than torchvision's own module: norm.1 for norm1.
_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def loaded(network: Network, weights: Mapping[str, Any] | None, dropped: str = "") -> Network:
    """The network, with a state_dict if there is one, of which names that begin with one of `dropped` are left out.

    Raises:
        RuntimeError: names or shapes that are not the network's.
        TypeError: weights that are no state_dict, such as a member of torchvision's enumerations: nothing is downloaded.
    """
    if weights is not None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights: expected a state_dict or None, got {type(weights).__name__}")
        renamed = {_OLD_LAYER.sub(r"\1\2.", name): value for name, value in weights.items()}
        network.load_state_dict({name: value for name, value in renamed.items() if not (dropped and name.startswith(dropped))})
    return network
