"""The lecture's networks, each on the modules of a namespace: `torch_unroll.nn` by default, `torch.nn` for the peer."""

from torch_unroll.models.alexnet import AlexNet, alexnet
from torch_unroll.models.densenet import DenseNet, densenet121, densenet_bc_100_12
from torch_unroll.models.googlenet import GoogLeNet, googlenet
from torch_unroll.models.hmm import HiddenMarkovModel
from torch_unroll.models.lenet import LeNet5, lenet5
from torch_unroll.models.recurrent import RecurrentNet, SequenceClassifier, identity_initialise, per_step_loss, truncated_bptt
from torch_unroll.models.resnet import CifarResNet, ResNet, cifar_resnet, resnet18, resnet34, resnet50

__all__ = [
    "AlexNet",
    "CifarResNet",
    "DenseNet",
    "GoogLeNet",
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
