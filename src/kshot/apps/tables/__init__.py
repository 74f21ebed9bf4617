"""Rows of numbers: quantile scaling, or vectors as they are."""

from kshot.apps.tables.encoder import TableEncoder
from kshot.apps.tables.vector import VectorEncoder

__all__ = ["TableEncoder", "VectorEncoder"]
