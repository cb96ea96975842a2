"""IAT: the image adversarial model that IAST, CBST* and CRST* start from (Mei et al., arXiv 2008.12197; Eq. 1 and 2).

    L(G) = CE(P_s, y_s) + lambda (D(P_t) - source)^2
    L(D) = 1/2 [ (D(P_s) - source)^2 + (D(P_t) - target)^2 ]

AdaptSegNet of one level with least squares, from the source-only model. The published weight is 0.05 for GTA5 and 0.001
for SYNTHIA; the default lies between, where AdaptSegNet's own least-squares variant has it. The published code's
discriminator has a 3x3 instead of a 4x4 first kernel, with maps of the same size; here all methods share one.
"""

from __future__ import annotations

from dataclasses import dataclass

from vda.losses import Gan
from vda.methods.adaptsegnet import AdaptSegNet, AdaptSegNetSettings


@dataclass(frozen=True)
class IATSettings(AdaptSegNetSettings):
    """Least-squares adversarial alignment of segmentation maps, one level."""

    gan: Gan = "least_squares"
    lambda_adv: float = 0.01
    multi_level: bool = False


class IAT(AdaptSegNet):
    """AdaptSegNet with other settings."""

    title = "IAT"
    settings_type = IATSettings
