"""A run's model in formats that other programs read."""

from planaria.deploy.export import Exported, export

__all__ = ["Exported", "export"]
