"""Explanation-enhanced learning: guide models by their explanations, and distil explanations into small models."""

__version__ = "0.1.0"
