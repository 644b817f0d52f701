"""Conditional diffusion models that stay right when their training labels are wrong."""

__version__ = "0.1.0"
