"""Unsupervised domain adaptation of video semantic segmentation.

`vda.ops` are the kernels, `vda.methods` the algorithms, `vda.data` the videos; `train.py` and
`evaluate.py` at the top of the repository are the two loops.
"""

__version__ = "0.1.0"
