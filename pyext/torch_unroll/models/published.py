"""Loading weights, such as those that torchvision publishes, into networks with torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)

#: Names such as norm.1 for norm1, in the published file of DenseNet-121, which is older than torchvision's module.
_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def loaded(network: Network, weights: Mapping[str, Any] | None, dropped: str = "") -> Network:
    """Loads a state_dict, if it is not None, into the network and returns the network. Entries whose names begin with `dropped`
    are ignored, unless it is empty.

    Raises:
        RuntimeError: the names or shapes are not those of the network.
        TypeError: weights is not a state_dict but, for example, a member of torchvision's enumerations; nothing is downloaded.
    """
    if weights is not None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights: expected a state_dict or None, got {type(weights).__name__}")
        renamed = {_OLD_LAYER.sub(r"\1\2.", name): value for name, value in weights.items()}
        network.load_state_dict({name: value for name, value in renamed.items() if not (dropped and name.startswith(dropped))})
    return network
