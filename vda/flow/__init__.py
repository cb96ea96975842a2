"""Optical flow: who provides it, and where it is kept."""

from vda.flow.cache import CachedFlow, precompute
from vda.flow.providers import PROVIDERS, DISFlow, ExactFlow, FlowProvider, NetworkFlow, PrecomputedFlow, provider

__all__ = [
    "PROVIDERS",
    "CachedFlow",
    "DISFlow",
    "ExactFlow",
    "FlowProvider",
    "NetworkFlow",
    "PrecomputedFlow",
    "precompute",
    "provider",
]
