"""Surgery on a live model: growing, shrinking, and the scores that say where."""

from planaria.morph.follow import Follower, Followers
from planaria.morph.gating import openings
from planaria.morph.importance import growth_scores, head_importance
from planaria.morph.likeness import distances, strains
from planaria.morph.refit import refit_output_projection
from planaria.morph.renew import renew_unit
from planaria.morph.surgery import operate, temper

__all__ = [
    "Follower",
    "Followers",
    "distances",
    "growth_scores",
    "head_importance",
    "openings",
    "operate",
    "refit_output_projection",
    "renew_unit",
    "strains",
    "temper",
]
