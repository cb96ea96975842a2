"""The colours of a checkpoint's classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vda.checkpoint import Checkpoint
from vda.data.class_maps import COLOURS, made_up_colour
from vda.data.synthetic import CLASSES, PALETTE
from vda.errors import UsageError


def palette_of(checkpoint: Checkpoint) -> NDArray[np.uint8]:
    """[K, 3] RGB: those that the checkpoint carries, else those of the classes' names, else hues of their own.

    Raises UsageError for a palette that is none.
    """
    classes = checkpoint.meta["classes"]
    if (carried := checkpoint.meta.get("palette")) is not None:
        palette = np.array(carried)
        if (
            palette.shape != (len(classes), 3)
            or palette.dtype.kind != "i"
            or not ((palette >= 0) & (palette < 256)).all()
        ):
            raise UsageError(f"{checkpoint.path}: wanted a palette of {len(classes)} RGB colours, found another")
        return palette.astype(np.uint8)
    known = {**COLOURS, **dict(zip(CLASSES, PALETTE.tolist(), strict=True))}
    return np.array([known.get(name, made_up_colour(k)) for k, name in enumerate(classes)], np.uint8)
