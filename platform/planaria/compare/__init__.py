"""One stream, several ways to learn it: policies of planaria, and peers from other libraries."""

from planaria.compare.contest import Contest, compare

__all__ = ["Contest", "compare"]
