"""congrad: keep the preference pairs whose own gradients agree across languages."""

__version__ = "0.1.0"
