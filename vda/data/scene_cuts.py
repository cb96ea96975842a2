"""Where one shot of a video ends and another begins.

As PySceneDetect's adaptive content detector: the change between neighbouring frames must be large, and large against
the changes around it, so that a fast pan, which is large all along, is no cut. The measure here is the mean difference
of small Lab pictures; a flash, which is two large changes in a row, is no cut either.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.data.clip import Image

# Cuts between driving videos are 17 and more, neighbouring frames of one at 15 Hz at most 5.
THRESHOLD = 9.0
RATIO = 3.0
NEIGHBOURS = 2  # on each side
SMALL = (64, 36)  # width, height


def small(image: Image) -> NDArray[np.float32]:
    """[36, 64, 3]: an RGB image as it is compared, in Lab of 0 .. 255 each."""
    return cv2.cvtColor(cv2.resize(image, SMALL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2Lab).astype(np.float32)


def change(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean absolute difference of two small pictures, 0 to 255."""
    return float(np.abs(after - before).mean())


def cuts(changes: Sequence[float]) -> list[int]:
    """The frames with which a new shot begins. changes: of every frame against the one before it; 0 for the first."""
    found = []
    for i in range(1, len(changes)):
        around = [*changes[max(1, i - NEIGHBOURS) : i], *changes[i + 1 : i + 1 + NEIGHBOURS]]
        if changes[i] >= THRESHOLD and changes[i] >= RATIO * max(around, default=0.0):
            found.append(i)
    return found
