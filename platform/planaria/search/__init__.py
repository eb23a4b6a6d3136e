"""`planaria search`: campaigns over the settings of a job, as trials of Ray Tune."""

from planaria.search.campaign import Campaign, load_campaign
from planaria.search.run import search

__all__ = ["Campaign", "load_campaign", "search"]
