"""Do two concepts contradict each other: the same inputs with other labels? Pure.

Legend: K cells of the newer concept, J cells of the older one, F sketch features.
"""

from __future__ import annotations

import numpy as np

from planaria.detect.signature import Signature

LEAST_CELL_ROWS = 8
"""A cell counts from so many rows on, in both concepts."""
MOST = 0.5
"""Share of the cells present in both that must have changed places."""


def contradicts(old: Signature, present: Signature, max_distance: float) -> bool:
    """Whether most classes that both concepts have lie where the older one has *another* class.

    `max_distance` (squared Mahalanobis, within the older concept's cells, freed of what chance adds) says what counts
    as the same place. Turned or noisy inputs are not near any class, new classes are not in both, and other class
    frequencies leave the means where they are: none of those contradicts.
    """
    known_J = np.flatnonzero(old.count_K >= LEAST_CELL_ROWS)
    both_K = np.flatnonzero((old.count_K >= LEAST_CELL_ROWS) & (present.count_K >= LEAST_CELL_ROWS))
    if len(both_K) < 2:
        return False
    distance_KJ = present.distances_to(old, both_K, known_J)
    nearest_K = known_J[distance_KJ.argmin(1)]
    moved_K = (nearest_K != both_K) & (distance_KJ.min(1) <= max_distance)
    return bool(moved_K.mean() > MOST)
