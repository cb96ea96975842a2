"""VideoGAN: translation of video (Chen et al., AAAI 2020, arXiv 2004.08058), then training on translated source.

Written from the abstract and what CycleGANs have in common, since neither code nor all details are public
(docs/methods.md). Two generators of X shape take two frames of one video each, source to target and back:

    L(G_st, G_ts) = LSGAN of both + lambda_cycle (|G_ts(G_st(x_s)) - x_s| + |G_st(G_ts(x_t)) - x_t|)
                  + lambda_histogram (histogram of each translated frame against a real one of the other domain, and of
                    the two translated frames against each other)
    L(D)          = 1/2 [ D(translated)^2 + (D(real) - 1)^2 ]        one D for each domain, on single frames

Then the segmentation network learns on G_st(x_s) with the source's labels, so that nothing is added at test time; the
paper translates the target instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
