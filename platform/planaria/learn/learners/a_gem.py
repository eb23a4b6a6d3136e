"""A-GEM: averaged gradient episodic memory.

Source: Chaudhry et al. 2019 (arXiv 1812.00420).
"""

from __future__ import annotations

from torch import Tensor


def project(fresh: Tensor, reference: Tensor) -> Tensor:
    """The fresh rows' gradient, without what would raise the replayed rows' loss to first order:
    g - min(0, g.r) / r.r x r. Both are flat, over all parameters."""
    against = fresh @ reference
    if not bool(against < 0):
        return fresh
    return fresh - against / (reference @ reference) * reference
