"""Measured lessons and tested tools for training deep networks faster and making them smaller."""

__version__ = "0.1.0"
