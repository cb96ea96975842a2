"""Data that some tests need and the repository does not carry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_data(*parts: str) -> Path:
    """Path below the shared data folder ($VDA_SHARED_DATA, else ../shared/data beside the repository).

    Skips the calling test, saying what is missing, where the file or folder does not exist.
    """
    folder = Path(os.environ.get("VDA_SHARED_DATA") or ROOT.parent / "shared" / "data")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(
            f"{'/'.join(parts) or 'shared data'} is not in {folder} (set VDA_SHARED_DATA)",
            allow_module_level=True,
        )
    return path
