r"""The FlowNet2 family (Ilg et al., CVPR 2017) on this package's correlation and warp.

    C    correlation of the features of both images             S, SD    both images stacked; SD for small displacements
    CS, CSS    C, then S (twice) on ( image 0, image 1, image 1 warped by the flow so far, flow, brightness error )
    FlowNet2   CSS, SD beside it, and a fusion network at full resolution

Names and shapes of the state dicts are those of NVIDIA's flownet2-pytorch, so the published checkpoints load; `width`
thins all layers, 64 is published. Sub-networks work in its units: images minus their common mean, flow at a quarter of
the resolution in twentieths of a pixel. What is public takes RGB in [0, 1] of any size and gives pixels: F(p) brings
the second image onto the first, first(p) = second(p + F(p)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vda.ops import correlation, warp

STRIDE = 64  # six halvings; images are padded to multiples of it
UNIT = 20.0  # the networks estimate twentieths of a pixel ("div_flow")
SLOPE = 0.1
REACH, STEP = 20, 2  # of the correlation: displacements of -20, -18, .. 20 along each axis


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2), nn.LeakyReLU(SLOPE, inplace=True))


def linear_conv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, 1, 1))


def deconv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(channels, out, 4, 2, 1), nn.LeakyReLU(SLOPE, inplace=True))


def flow_conv(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 2, 3, 1, 1)


def flow_deconv(bias: bool = True) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=bias)


class Refinement(nn.Module):
    """The decoder that C, S and SD share: from level 6 (1/64) to level 2 (1/4), each a flow that the next refines.

    skips: channels of the encoder at levels 6, 5, 4, 3, 2. A subclass calls `refine` with the features themselves.
    """

    def __init__(self, skips: Sequence[int], *, width: int, bias: bool, inter: bool) -> None:
        super().__init__()
        below, last = skips[0], skips[0]
        for level, skip, up in zip((5, 4, 3, 2), skips[1:], (8, 4, 2, 1), strict=True):
            self.add_module(f"predict_flow{level + 1}", flow_conv(last))
            self.add_module(f"upsampled_flow{level + 1}_to_{level}", flow_deconv(bias))
            self.add_module(f"deconv{level}", deconv(below, up * width))
            below = last = skip + up * width + 2
            if inter:
                last = up * width
                self.add_module(f"inter_conv{level}", linear_conv(below, last))
        self.predict_flow2 = flow_conv(last)
        self.inter = inter

    def pyramid(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Flows from first to second at levels 2 .. 6, in units of the network."""
        raise NotImplementedError

    def both_pyramids(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Both directions of a pair, first to second and second to first along the batch."""
        return self.pyramid(torch.cat([first, second]), torch.cat([second, first]))

    def refine(self, features: Sequence[Tensor]) -> list[Tensor]:
        """features at levels 6, 5, 4, 3, 2 -> flows at levels 2, 3, 4, 5, 6, in units of the network."""
        below = estimate = features[0]
        flows = [self._flow(6, estimate)]
        for level, skip in zip((5, 4, 3, 2), features[1:], strict=True):
            raised = getattr(self, f"upsampled_flow{level + 1}_to_{level}")(flows[0].to(skip.dtype))
            below = torch.cat([skip, getattr(self, f"deconv{level}")(below), raised], 1)
            estimate = getattr(self, f"inter_conv{level}")(below) if self.inter else below
            flows.insert(0, self._flow(level, estimate))
        return flows

    def _flow(self, level: int, estimate: Tensor) -> Tensor:
        # In float32 under autocast too: 8 bits of mantissa would be an error of 0.08 at 20 pixels.
        with torch.autocast(estimate.device.type, enabled=False):
            flow: Tensor = getattr(self, f"predict_flow{level}")(estimate.float())
        return flow


def cost_volume(ours: Tensor, other: Tensor) -> Tensor:
    """FlowNetC's correlation of features [B, C, H, W]: [B, 441, H, W], after the activation."""
    return correlation(ours, other, max_displacement=REACH, stride=STEP, negative_slope=SLOPE)


def turned_round(volume: Tensor) -> Tensor:
    """cost_volume(other, ours) from cost_volume(ours, other): the same products, bit for bit.

    The product of pixel p with displacement d there is the product of p + d with -d here; a view of the reversed volume
    with zeros around it finds all of them.
    """
    B, D, H, W = volume.shape
    side = 2 * (REACH // STEP) + 1
    around = F.pad(volume.flip(1), (REACH,) * 4)
    width = W + 2 * REACH
    plane = (H + 2 * REACH) * width
    strides = (D * plane, side * plane + STEP * width, plane + STEP, width, 1)
    return around.as_strided((B, side, side, H, W), strides).flatten(1, 2)


class FlowNetC(Refinement):
    """Features of both images, their correlation, and the decoder."""

    def __init__(self, width: int = 64) -> None:
        w, redir = width, width // 2
        super().__init__([16 * w, 8 * w, 8 * w, 4 * w, 2 * w], width=w, bias=True, inter=False)
        self.conv1 = conv(3, w, 7, 2)
        self.conv2 = conv(w, 2 * w, 5, 2)
        self.conv3 = conv(2 * w, 4 * w, 5, 2)
        self.conv_redir = conv(4 * w, redir, 1)
        self.conv3_1 = conv(redir + 441, 4 * w)
        self.conv4, self.conv4_1 = conv(4 * w, 8 * w, 3, 2), conv(8 * w, 8 * w)
        self.conv5, self.conv5_1 = conv(8 * w, 8 * w, 3, 2), conv(8 * w, 8 * w)
        self.conv6, self.conv6_1 = conv(8 * w, 16 * w, 3, 2), conv(16 * w, 16 * w)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of one image at levels 2 and 3."""
        two = self.conv2(self.conv1(image))
        return two, self.conv3(two)

    def decode(self, two: Tensor, three: Tensor, volume: Tensor) -> list[Tensor]:
        """Flows of the image with features `two` and `three`, and their correlation with the other image's."""
        three = self.conv3_1(torch.cat([self.conv_redir(three), volume], 1))
        four = self.conv4_1(self.conv4(three))
        five = self.conv5_1(self.conv5(four))
        return self.refine([self.conv6_1(self.conv6(five)), five, four, three, two])

    def pyramid(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Flows from first to second at levels 2 .. 6, in units of the network."""
        two, three = self.encode(torch.cat([first, second]))
        ours, other = three.chunk(2)
        return self.decode(two.chunk(2)[0], ours, cost_volume(ours, other))

    def both_pyramids(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Features and products are computed once."""
        two, three = self.encode(torch.cat([first, second]))
        volume = cost_volume(*three.chunk(2))
        return self.decode(two, three, torch.cat([volume, turned_round(volume)]))


class FlowNetS(Refinement):
    """Both images stacked, and what a cascade knows already: `channels` of input."""

    def __init__(self, channels: int = 6, width: int = 64) -> None:
        w = width
        super().__init__([16 * w, 8 * w, 8 * w, 4 * w, 2 * w], width=w, bias=False, inter=False)
        self.conv1 = conv(channels, w, 7, 2)
        self.conv2 = conv(w, 2 * w, 5, 2)
        self.conv3, self.conv3_1 = conv(2 * w, 4 * w, 5, 2), conv(4 * w, 4 * w)
        self.conv4, self.conv4_1 = conv(4 * w, 8 * w, 3, 2), conv(8 * w, 8 * w)
        self.conv5, self.conv5_1 = conv(8 * w, 8 * w, 3, 2), conv(8 * w, 8 * w)
        self.conv6, self.conv6_1 = conv(8 * w, 16 * w, 3, 2), conv(16 * w, 16 * w)

    def pyramid(self, *inputs: Tensor) -> list[Tensor]:
        """Flows at levels 2 .. 6, in units of the network; inputs are concatenated."""
        two = self.conv2(self.conv1(torch.cat(inputs, 1)))
        three = self.conv3_1(self.conv3(two))
        four = self.conv4_1(self.conv4(three))
        five = self.conv5_1(self.conv5(four))
        return self.refine([self.conv6_1(self.conv6(five)), five, four, three, two])


class FlowNetSD(Refinement):
    """Small kernels and a smoothing convolution before each estimate: for displacements of a pixel and less."""

    def __init__(self, width: int = 64) -> None:
        w = width
        super().__init__([16 * w, 8 * w, 8 * w, 4 * w, 2 * w], width=w, bias=True, inter=True)
        self.conv0 = conv(6, w)
        self.conv1, self.conv1_1 = conv(w, w, 3, 2), conv(w, 2 * w)
        self.conv2, self.conv2_1 = conv(2 * w, 2 * w, 3, 2), conv(2 * w, 2 * w)
        self.conv3, self.conv3_1 = conv(2 * w, 4 * w, 3, 2), conv(4 * w, 4 * w)
        self.conv4, self.conv4_1 = conv(4 * w, 8 * w, 3, 2), conv(8 * w, 8 * w)
        self.conv5, self.conv5_1 = conv(8 * w, 8 * w, 3, 2), conv(8 * w, 8 * w)
        self.conv6, self.conv6_1 = conv(8 * w, 16 * w, 3, 2), conv(16 * w, 16 * w)

    def pyramid(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Flows from first to second at levels 2 .. 6, in units of the network."""
        one = self.conv1_1(self.conv1(self.conv0(torch.cat([first, second], 1))))
        two = self.conv2_1(self.conv2(one))
        three = self.conv3_1(self.conv3(two))
        four = self.conv4_1(self.conv4(three))
        five = self.conv5_1(self.conv5(four))
        return self.refine([self.conv6_1(self.conv6(five)), five, four, three, two])


class FlowNetFusion(nn.Module):
    """Two flows and how well each explains the images -> one flow, in pixels, at full resolution."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w, half, quarter = width, width // 2, width // 4
        self.conv0 = conv(11, w)
        self.conv1, self.conv1_1 = conv(w, w, 3, 2), conv(w, 2 * w)
        self.conv2, self.conv2_1 = conv(2 * w, 2 * w, 3, 2), conv(2 * w, 2 * w)
        one, zero = 2 * w + half + 2, w + quarter + 2
        self.deconv1, self.deconv0 = deconv(2 * w, half), deconv(one, quarter)
        self.inter_conv1, self.inter_conv0 = linear_conv(one, half), linear_conv(zero, quarter)
        self.predict_flow2, self.predict_flow1, self.predict_flow0 = map(flow_conv, (2 * w, half, quarter))
        self.upsampled_flow2_to_1, self.upsampled_flow1_to_0 = flow_deconv(), flow_deconv()

    def forward(self, *inputs: Tensor) -> Tensor:
        zero = self.conv0(torch.cat(inputs, 1))
        one = self.conv1_1(self.conv1(zero))
        two = self.conv2_1(self.conv2(one))
        one = torch.cat([one, self.deconv1(two), self.upsampled_flow2_to_1(self.predict_flow2(two))], 1)
        raised = self.upsampled_flow1_to_0(self.predict_flow1(self.inter_conv1(one)))
        zero = torch.cat([zero, self.deconv0(one), raised], 1)
        with torch.autocast(zero.device.type, enabled=False):  # see Refinement
            flow: Tensor = self.predict_flow0(self.inter_conv0(zero.float()))
        return flow


# ---- whole estimators: RGB in, pixels out ----


def quadrupled(flow: Tensor, mode: str = "bilinear") -> Tensor:
    """From level 2 to full resolution; half-pixel centres, as the original's resampling layer."""
    align = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(flow, scale_factor=4, mode=mode, **align)


def length(x: Tensor) -> Tensor:
    """Euclidean norm over the channels, [B, 1, H, W]."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


class Estimator(nn.Module):
    """What all variants share: normalisation, padding, and both directions of a pair."""

    config: dict[str, Any]  # the arguments of `build_estimator`

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """For an optimiser: all layers learn alike."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from `first` to `second`.

        Args:
            first, second: [B, 3, H, W] RGB in [0, 1], any H and W.

        Returns:
            [B, 2, H, W] float32, pixels of the input, (u right, v down): first(p) = second(p + flow(p)).
        """
        H, W = first.shape[-2:]
        return self.flow(*self.prepared(first, second))[..., :H, :W]

    def both(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The flows from first to second and from second to first; features of an image are computed once."""
        H, W = first.shape[-2:]
        there, back = self.flows(*self.prepared(first, second))
        return there[..., :H, :W], back[..., :H, :W]

    def prepared(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both images as `flow` takes them: normalised, and extended to the right and below."""
        return normalised(first, second)

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Like `forward`, of images that are `prepared`."""
        raise NotImplementedError

    def flows(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Like `both`, of images that are `prepared`."""
        there, back = self.flow(torch.cat([first, second]), torch.cat([second, first])).chunk(2)
        return there, back


def check_pair(first: Tensor, second: Tensor) -> None:
    """Raise TypeError or ValueError unless both are float [B, 3, H, W] of one shape."""
    for name, x in (("first", first), ("second", second)):
        if not x.is_floating_point():
            raise TypeError(f"{name}: wanted RGB in [0, 1] as float, got {str(x.dtype)[6:]}")
        if x.dim() != 4 or x.shape[1] != 3 or 0 in x.shape[-2:]:
            raise ValueError(f"{name}: wanted shape [B, 3, H, W], got {list(x.shape)}")
    if first.shape != second.shape:
        raise ValueError(f"second: wanted the shape {list(first.shape)} of first, got {list(second.shape)}")


def normalised(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both images minus the mean of each channel over the two, their borders repeated up to multiples of 64."""
    check_pair(first, second)
    mean = (first.mean((2, 3), keepdim=True) + second.mean((2, 3), keepdim=True)) / 2
    H, W = first.shape[-2:]
    margin = (0, -W % STRIDE, 0, -H % STRIDE)

    def padded(x: Tensor) -> Tensor:
        x = x - mean
        return F.pad(x, margin, mode="replicate") if any(margin) else x

    return padded(first), padded(second)


class FlowNet2S(FlowNetS, Estimator):
    def __init__(self, width: int = 64) -> None:
        super().__init__(6, width)

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        return quadrupled(self.pyramid(first, second)[0] * UNIT)


class FlowNet2SD(FlowNetSD, Estimator):
    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        return quadrupled(self.pyramid(first, second)[0] * UNIT)


class FlowNet2C(FlowNetC, Estimator):
    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        return quadrupled(self.pyramid(first, second)[0] * UNIT)

    def flows(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        there, back = quadrupled(self.both_pyramids(first, second)[0] * UNIT).chunk(2)
        return there, back


class FlowNet2CS(Estimator):
    """C, and one network that refines its flow."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.flownetc = FlowNetC(width)
        self.flownets_1 = FlowNetS(12, width)

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        return self.cascade(first, second, self.flownetc.pyramid(first, second)[0])

    def flows(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        start = self.flownetc.both_pyramids(first, second)[0]
        there, back = self.cascade(torch.cat([first, second]), torch.cat([second, first]), start).chunk(2)
        return there, back

    def cascade(self, first: Tensor, second: Tensor, start: Tensor) -> Tensor:
        """From C's flow at level 2 to the result."""
        return refined(self.flownets_1, first, second, quadrupled(start * UNIT), "bilinear")


class FlowNet2CSS(FlowNet2CS):
    """C, and two networks that refine its flow."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.flownets_2 = FlowNetS(12, width)

    def cascade(self, first: Tensor, second: Tensor, start: Tensor) -> Tensor:
        return refined(self.flownets_2, first, second, super().cascade(first, second, start), "nearest")


class FlowNet2(FlowNet2CSS):
    """CSS, SD beside it, and their fusion."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.flownets_d = FlowNetSD(width)
        self.flownetfusion = FlowNetFusion(width)

    def cascade(self, first: Tensor, second: Tensor, start: Tensor) -> Tensor:
        large = super().cascade(first, second, start)
        # Divided, not multiplied: that is what the fusion network was trained on.
        small = quadrupled(self.flownets_d.pyramid(first, second)[0] / UNIT, "nearest")
        errors = [length(first - warp(second, flow, padding="border")) for flow in (small, large)]
        return self.flownetfusion(first, small, large, length(small), length(large), *errors)


def refined(network: FlowNetS, first: Tensor, second: Tensor, flow: Tensor, mode: str) -> Tensor:
    """One stage of a cascade: full-resolution flow in, better full-resolution flow out, pixels."""
    warped = warp(second, flow, padding="border")
    estimate = network.pyramid(first, second, warped, flow / UNIT, length(first - warped))[0]
    return quadrupled(estimate * UNIT, mode)


VARIANTS: dict[str, Callable[..., Estimator]] = {  # called with the width
    "flownet2": FlowNet2,
    "flownet2-c": FlowNet2C,
    "flownet2-s": FlowNet2S,
    "flownet2-sd": FlowNet2SD,
    "flownet2-cs": FlowNet2CS,
    "flownet2-css": FlowNet2CSS,
}


def build_estimator(variant: str, width: int = 64) -> Estimator:
    """A network of the family with random weights; a `width` below the published 64 thins all layers."""
    network = VARIANTS[variant](width=width)
    network.config = {"variant": variant, "width": width}
    initialise(network)
    return network


def initialise(network: nn.Module) -> None:
    """He's variance for a slope of 0.1, and biases of 0; layers that give flow begin with a tenth of that.

    Under torch's own bounds, made for fewer layers, signals fade on their way through twenty: training stands still.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        up = isinstance(layer, nn.ConvTranspose2d)  # 4 x 4 at stride 2: a pixel is reached by a quarter of the kernel
        reached = layer.weight[:, 0].numel() / 4 if up else layer.weight[0].numel()
        deviation = math.sqrt(2 / ((1 + SLOPE**2) * reached))
        nn.init.normal_(layer.weight, std=deviation * (0.1 if "flow" in name.rpartition(".")[2] else 1.0))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
