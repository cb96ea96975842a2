"""ResNet-18 and ResNet-50 with output stride 8, in both published forms, and the loading of ImageNet weights.

Sources: He et al., "Deep residual learning" (arXiv 1512.03385); Chen et al., "DeepLab" (arXiv 1606.00915) for
the dilated form. Parameter names are torchvision's. Weights are trained with one placement of strides, one
order of channels and one normalisation; all three are loaded together and stored as buffers, so a checkpoint
carries them.

    variant       stride of layer2        dilation of a first block    max-pool     images
    torchvision   in the 3x3 convolution  that of the layer before     floor size   RGB, 0..1, mean and std
    caffe         in the first 1x1        that of its own layer        ceil size    BGR, 0..255, mean only
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vda.errors import UsageError

Variant = Literal["torchvision", "caffe"]

# Variance of the first convolution's output over the energy of its filters. Images in 0..255 have a variance
# about 58^2 times that of standardised ones; published weights give some thousands (caffe) and about one
# (torchvision).
_CAFFE_GAIN, _TORCHVISION_GAIN = 300.0, 30.0
_NOT_NEEDED = ("fc.", "num_batches_tracked")  # the classifier and a counter


@dataclass(frozen=True)
class Normalisation:
    """What turns RGB in [0, 1] into the input of some weights: (channel * scale - mean) / std.

    bgr: channels are reversed first; mean and std are in the order of the weights.
    """

    bgr: bool
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS: dict[Variant, Normalisation] = {
    "torchvision": Normalisation(False, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": Normalisation(True, 255.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
}


class Normalise(nn.Module):
    """RGB [N, 3, H, W] in [0, 1] -> the input that the weights were trained with. Everything lives in
    buffers."""

    order: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        # An index instead of a flag: no branch on a tensor's value, hence no wait for the GPU.
        self.register_buffer("order", torch.tensor([2, 1, 0] if normalisation.bgr else [0, 1, 2]))
        self.register_buffer("scale", torch.tensor(normalisation.scale))
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.index_select(1, self.order) * self.scale - self.mean) / self.std


class _Block(nn.Module):
    """A residual block: `residual(x)` plus the identity or its 1x1 projection, then ReLU."""

    downsample: nn.Sequential | None

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def place(self, variant: Variant, before: int, after: int) -> None:
        """Puts the stride and the dilations where `variant` has them.

        A dilated network equals the strided one on the strided one's grid only if a convolution in front of
        the removed stride keeps the dilation `before` and one behind it takes `after`.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(self.residual(x) + identity, inplace=True)


class BasicBlock(_Block):
    """Two 3x3 convolutions (ResNet-18)."""

    expansion = 1
    variants: tuple[Variant, ...] = ("torchvision",)

    def __init__(self, c_in: int, c_mid: int, stride: int) -> None:
        super().__init__(c_in, c_mid, stride)
        self.conv1 = nn.Conv2d(c_in, c_mid, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_mid)
        self.conv2 = nn.Conv2d(c_mid, c_mid, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_mid)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x))

    def place(self, variant: Variant, before: int, after: int) -> None:
        _dilate(self.conv1, before)
        _dilate(self.conv2, after)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions (ResNet-50)."""

    expansion = 4
    variants: tuple[Variant, ...] = ("torchvision", "caffe")

    def __init__(self, c_in: int, c_mid: int, stride: int) -> None:
        c_out = c_mid * self.expansion
        super().__init__(c_in, c_out, stride)
        self.conv1 = nn.Conv2d(c_in, c_mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_mid)
        self.conv2 = nn.Conv2d(c_mid, c_mid, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_mid)
        self.conv3 = nn.Conv2d(c_mid, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))

    def place(self, variant: Variant, before: int, after: int) -> None:
        caffe = variant == "caffe"
        self.conv1.stride = (self.stride,) * 2 if caffe else (1, 1)
        self.conv2.stride = (1, 1) if caffe else (self.stride,) * 2
        _dilate(self.conv2, after if caffe else before)


def _dilate(conv: nn.Conv2d, dilation: int) -> None:
    conv.dilation = conv.padding = (dilation, dilation)


def _follow_buffer(body: nn.Module, _: object) -> None:
    """After weights were loaded, strides follow the variant that came with them."""
    assert isinstance(body, ResNet)
    body.place(body.variant)


class ResNet(nn.Module):
    """ResNet without its classifier, output stride 8: layer3 and layer4 have dilation 2 and 4 instead of
    strides.

    Input [N, 3, H, W] normalised images, output [N, 8 * width * expansion, about H/8, about W/8].
    width: channels of the stem (64 published).
    """

    caffe: Tensor

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int = 64,
        variant: Variant = "torchvision",
    ) -> None:
        super().__init__()
        self.block = block
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = [width] + [width * 2**i * block.expansion for i in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                *(
                    block(
                        channels[i] if j == 0 else channels[i + 1],
                        width * 2**i,
                        2 if i == 1 and j == 0 else 1,
                    )
                    for j in range(depth)
                )
            )
            for i, depth in enumerate(depths)
        )
        self.channels, self.layer3_channels = channels[-1], channels[-2]
        self.register_buffer("caffe", torch.tensor(False))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.place(variant)
        self.register_load_state_dict_post_hook(_follow_buffer)

    @property
    def variant(self) -> Variant:
        """The published form that strides and dilations follow."""
        return "caffe" if bool(self.caffe) else "torchvision"

    def place(self, variant: Variant) -> None:
        """Rearranges strides and dilations; parameters stay as they are. ValueError where the block has no
        such form."""
        if variant not in self.block.variants:
            raise ValueError(f"variant: wanted one of {self.block.variants} for this ResNet, got {variant!r}")
        self.caffe.fill_(variant == "caffe")
        self.maxpool.ceil_mode = variant == "caffe"
        for layer, dilation in ((self.layer1, 1), (self.layer2, 1), (self.layer3, 2), (self.layer4, 4)):
            for j, block in enumerate(layer):
                assert isinstance(block, _Block)
                block.place(variant, max(dilation // 2, 1) if j == 0 else dilation, dilation)

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of layer3, [N, layer3_channels, about H/8, about W/8], and of layer4, [N, channels, the same]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))
        third = self.layer3(self.layer2(self.layer1(x)))
        return third, self.layer4(third)

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(images)[1]


def resnet18(width: int = 64, variant: Variant = "torchvision") -> ResNet:
    """ResNet-18; it has one published form."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width, variant)


def resnet50(width: int = 64, variant: Variant = "torchvision") -> ResNet:
    """ResNet-50 in either published form."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width, variant)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file, or of a torch state dict (.pth, .pt; read without pickled
    code).

    Raises UsageError naming the file when it is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path}: wanted a file of network weights, found {'a folder' if path.is_dir() else 'none'}")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
            return load_file(path), metadata
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UsageError(
            f"{path}: wanted a state dict of tensors, found a damaged file or pickled objects (never loaded)"
        ) from None
    except Exception as error:  # whatever a foreign file makes the parsers raise
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise UsageError(f"{path}: wanted a whole file of network weights, found a damaged one ({reason})") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(
            f"{path}: wanted a state dict (names to tensors), found {type(state).__name__} of other things"
        )
    return dict(state), {}


def deduce_variant(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], wanted: Variant | None = None
) -> Variant:
    """The published form of some ResNet weights: the file's metadata, else the scale of the images they were
    trained on.

    Metadata decides by a key "variant", else by the word caffe in any value. Raises UsageError naming the
    file when `wanted` contradicts the metadata, or when nothing decides and `wanted` is None.
    """
    declared: Variant | None = None
    if metadata.get("variant") in ("torchvision", "caffe"):
        declared = "caffe" if metadata["variant"] == "caffe" else "torchvision"
    elif any("caffe" in value.lower() for value in metadata.values()):
        declared = "caffe"
    if wanted is not None:
        if declared not in (None, wanted):
            raise UsageError(f"{path}: wanted weights of the {wanted} variant, found {declared} in the file's metadata")
        return wanted
    if declared is not None:
        return declared
    if "conv1.weight" in state and "bn1.running_var" in state:
        energy = state["conv1.weight"].float().flatten(1).square().sum(1)
        if energy.shape == state["bn1.running_var"].shape:
            gain = float((state["bn1.running_var"].float() / energy).median())
            if gain > _CAFFE_GAIN:
                return "caffe"
            if gain < _TORCHVISION_GAIN:
                return "torchvision"
    raise UsageError(f"{path}: cannot tell which variant these weights are; give it as torchvision or caffe")


def load_body(body: ResNet, path: Path, variant: Variant | None = None) -> Normalisation:
    """Loads ImageNet weights into `body`, rearranges its strides to fit, and returns the normalisation they
    want.

    variant: where not given, deduced from the file (`deduce_variant`). 16-bit tensors are widened. Raises
    UsageError naming the file and the first offending key for missing or unknown keys and for other shapes.
    """
    state, metadata = read_weights(path)
    state = {k: v for k, v in state.items() if not k.startswith(_NOT_NEEDED[0]) and not k.endswith(_NOT_NEEDED[1])}
    own = {k: v for k, v in body.state_dict().items() if not k.endswith(_NOT_NEEDED[1]) and k != "caffe"}
    for problem, keys in (("lacks", own.keys() - state.keys()), ("has besides", state.keys() - own.keys())):
        if keys:
            raise UsageError(
                f"{path}: wanted the {len(own)} tensors of this ResNet, found a file that {problem} "
                f"{min(keys)!r}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            raise UsageError(
                f"{path}: {key}: wanted shape {tuple(tensor.shape)}, found {tuple(state[key].shape)}"
                + (" (pretrained weights need width 64)" if key == "conv1.weight" else "")
            )
    found = deduce_variant(path, state, metadata, variant)
    if found not in body.block.variants:
        raise UsageError(f"{path}: wanted weights of the {' or '.join(body.block.variants)} variant, found {found}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])
    body.place(found)
    return NORMALISATIONS[found]
