"""Optical flow: who provides it (providers.py), where it is kept (cache.py), and the networks (flownet2.py)."""
