"""Networks of the literature with the blocks of this package in them.

Each is a network of timm or torchvision whose blocks are ours, so that everything those libraries
do with it (features, other numbers of classes, other input channels) keeps working. The libraries
are imported when a network is made. `gate_profile` shows what the blocks of a trained one do.
"""

from chattn_cuda.models.eca import (
    eca_mobilenetv2,
    eca_resnet18,
    eca_resnet34,
    eca_resnet50,
    eca_resnet101,
    eca_resnet152,
)
from chattn_cuda.models.profile import BlockProfile, GateProfile, gate_profile
from chattn_cuda.models.se_inception import se_inception, se_inception_resnet_v2
from chattn_cuda.models.senet import (
    se_resnet50,
    se_resnet101,
    se_resnet152,
    se_resnext50,
    senet154,
)
from chattn_cuda.models.sknet import sknet26, sknet50, sknet101, sknet_cifar

__all__ = [
    "BlockProfile",
    "GateProfile",
    "eca_mobilenetv2",
    "eca_resnet101",
    "eca_resnet152",
    "eca_resnet18",
    "eca_resnet34",
    "eca_resnet50",
    "gate_profile",
    "se_inception",
    "se_inception_resnet_v2",
    "se_resnet101",
    "se_resnet152",
    "se_resnet50",
    "se_resnext50",
    "senet154",
    "sknet101",
    "sknet26",
    "sknet50",
    "sknet_cifar",
]
