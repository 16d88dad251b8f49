"""A pretrained classifier's body as the backbone of a detector: its feature maps, a light pyramid, and FCOS's head.

A classifier ends in one answer for the whole picture; the maps before that still know where things are. The pyramid
(Lin et al. 2017, "Feature pyramid networks for object detection") hands what the coarse maps recognised down to the
fine ones, and the head (Tian et al. 2019, "FCOS") says at every place of every map what is there and how far its edges
are.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from ftnb.pretrained import ModelError

LARGE = 128  # pictures from this side on need no map finer than stride 8
COARSEST = 32
WIDTH, NUM_CONVS = 64, 1
TYPICAL_DISTANCE = 2.0  # from a place to an edge of its object, in strides


class Stages(nn.Module):
    """The convolutions of a torchvision classifier, cut where the picture becomes smaller.

    Args:
        classifier: a model with its convolutions in `features`, or in children that follow each other as in a ResNet.

    Its output is a list with the last feature map of every size.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        pieces = _convolutions(classifier)
        self.stages = nn.ModuleList(nn.Sequential(*group) for group in _groups_of_one_size(pieces))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of shape (batch, channels, height, width), from fine to coarse."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _convolutions(classifier: nn.Module) -> list[nn.Module]:
    features = getattr(classifier, "features", None)
    children = list((features if isinstance(features, nn.Module) else classifier).children())
    ends = [i for i, m in enumerate(children) if isinstance(m, nn.Linear | nn.AdaptiveAvgPool2d)]
    return children[: min(ends, default=len(children))]


def _groups_of_one_size(pieces: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Runs of modules whose outputs have one height and width, found by sending a picture of zeros through."""
    groups: list[list[nn.Module]] = []
    x, side = torch.zeros(1, 3, 224, 224), 0
    modes = [piece.training for piece in pieces]
    try:
        with torch.no_grad():
            for piece in pieces:
                x = piece.eval()(x)
                if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[2] != x.shape[3]:
                    raise TypeError("no feature map")
                if x.shape[2] != side:
                    groups.append([])
                    side = x.shape[2]
                groups[-1].append(piece)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"this classifier has no chain of convolutions to take feature maps from ({error}).") from None
    finally:
        for piece, mode in zip(pieces, modes, strict=True):
            piece.train(mode)
    return groups


class PyramidBackbone(nn.Module):
    """A body and a pyramid over some of its maps, as torchvision's detectors want it.

    Args:
        body: gives feature maps: a list of them, or an object with `feature_maps` (transformers' backbones).
        side: of the pictures, in pixels.
        width: channels of the pyramid.

    Attributes:
        strides: pixels of the picture per place of each map used, from fine to coarse.
        out_channels: the width.
    """

    def __init__(self, body: nn.Module, side: int, width: int = WIDTH) -> None:
        super().__init__()
        self.body, self.out_channels = body, width
        with torch.no_grad():
            training = body.training
            maps = _maps(body.eval()(torch.zeros(1, 3, side, side)))
            body.train(training)
        strides = [round(side / m.shape[-1]) for m in maps]
        finest = 8 if side >= LARGE else 4
        last = {stride: i for i, stride in enumerate(strides)}  # of several maps of one size the last
        self.used = [i for s, i in sorted(last.items()) if finest <= s <= COARSEST and maps[i].shape[-1] > 1]
        if not self.used:
            raise ModelError(
                f"the backbone's maps have strides {strides}, none between {finest} and {COARSEST} for pictures of "
                f"{side} pixels. Give a larger image_size or another model."
            )
        self.strides = [strides[i] for i in self.used]
        self.fpn = FeaturePyramidNetwork([maps[i].shape[1] for i in self.used], width)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Maps of shape (batch, width, height, width of the map), by level, from fine to coarse."""
        maps = _maps(self.body(x))
        merged: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), maps[i]) for i in self.used))
        return merged


def _maps(outputs: Any) -> Sequence[Tensor]:
    maps: Sequence[Tensor] = getattr(outputs, "feature_maps", outputs)
    return maps


def dense_detector(body: nn.Module, side: int, num_labels: int, width: int = WIDTH, num_convs: int = NUM_CONVS) -> FCOS:
    """FCOS around a classifier's body, with a small head.

    Args:
        body: see `PyramidBackbone`.
        side: of the pictures, in pixels.
        num_labels: number of classes; there is no class for the ground.
        width: channels of pyramid and head, a multiple of 32.
        num_convs: convolutions in each of the head's two branches.
    """
    backbone = PyramidBackbone(body, side, width)
    anchors = AnchorGenerator(tuple((s,) for s in backbone.strides), ((1.0,),) * len(backbone.strides))
    head = FCOSHead(width, 1, num_labels, num_convs)
    # torchvision starts these convolutions at 0.01, which suits SGD; a step of Adam would throw such weights about.
    for branch in (head.classification_head.conv, head.regression_head.conv):
        for layer in branch:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    # Distances go through a ReLU and are counted in strides. From 0, half of them would start without a gradient.
    nn.init.constant_(head.regression_head.bbox_reg.bias, TYPICAL_DISTANCE)
    return FCOS(backbone, num_labels, anchor_generator=anchors, head=head)


def take_pictures_as_they_are(model: Any, side: int) -> None:
    """Switch off the resizing and normalising inside a torchvision detector: its inputs come ready made."""
    model.transform = GeneralizedRCNNTransform(side, side, [0.0] * 3, [1.0] * 3, _skip_resize=True)


def freeze_batch_norm(module: nn.Module) -> int:
    """Put BatchNorm layers with fixed statistics and scales in the place of all others; returns how many.

    A detector's batches are small, and the statistics of two pictures are worse than the pretrained ones.

    Source: He et al. (2017), "Mask R-CNN" and its code; `torchvision.ops.FrozenBatchNorm2d`.
    """
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
            setattr(module, name, frozen)
            count += 1
        else:
            count += freeze_batch_norm(child)
    return count
