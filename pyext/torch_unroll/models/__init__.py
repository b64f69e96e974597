"""The networks of a lecture on deep learning, built from the modules of a namespace: `torch_unroll.nn` by default, or `torch.nn`.

alexnet (in its default form), densenet121, googlenet (with `aux_logits`), resnet18, resnet34 and resnet50 have torchvision's
state_dict, name by name, and some of its keywords. Their argument `weights` is None or a state_dict; nothing is downloaded.
torchvision has no counterpart of the other networks.
"""

from torch_unroll.models.alexnet import AlexNet, alexnet
from torch_unroll.models.densenet import DenseNet, densenet121, densenet_bc_100_12
from torch_unroll.models.googlenet import GoogLeNet, GoogLeNetOutputs, googlenet
from torch_unroll.models.hmm import HiddenMarkovModel
from torch_unroll.models.lenet import LeNet5, lenet5
from torch_unroll.models.recurrent import RecurrentNet, SequenceClassifier, identity_initialise, per_step_loss, truncated_bptt
from torch_unroll.models.resnet import CifarResNet, ResNet, cifar_resnet, resnet18, resnet34, resnet50

__all__ = [
    "AlexNet",
    "CifarResNet",
    "DenseNet",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "HiddenMarkovModel",
    "LeNet5",
    "RecurrentNet",
    "ResNet",
    "SequenceClassifier",
    "alexnet",
    "cifar_resnet",
    "densenet121",
    "densenet_bc_100_12",
    "googlenet",
    "identity_initialise",
    "lenet5",
    "per_step_loss",
    "resnet18",
    "resnet34",
    "resnet50",
    "truncated_bptt",
]
