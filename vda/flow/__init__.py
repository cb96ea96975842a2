"""Optical flow: who provides it."""

from vda.flow.providers import PROVIDERS, DISFlow, ExactFlow, FlowProvider, provider

__all__ = ["PROVIDERS", "DISFlow", "ExactFlow", "FlowProvider", "provider"]
