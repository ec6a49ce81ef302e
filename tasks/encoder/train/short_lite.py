"""The first stages of EfficientNet-Lite0 as a small image tower, registered with timm: a student that inherits its teacher's weights.

Most of the network's weights are in its last stages, most of what a student of few minutes lacks is in its first ones
(docs/decisions/0087).
"""

from typing import Any

import timm
from timm.models import register_model
from timm.models.efficientnet import EfficientNet
from torch import nn

STAGES = 5
"""Of seven; the fifth gives maps of 112 channels at a sixteenth of the picture's side."""


@register_model
def vitrine_lite0_short(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """The student's tower of `demo_pair`: 0.7M parameters, under the names that they have in timm's tf_efficientnet_lite0."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    assert isinstance(network, EfficientNet)
    network.blocks = network.blocks[:STAGES]
    network.conv_head, network.bn2 = nn.Identity(), nn.Identity()
    network.num_features = network.head_hidden_size = network.feature_info[-2]["num_chs"]
    network.reset_classifier(kwargs.get("num_classes", 0))
    return network
