"""Estimate where police are deployed from dashcam images."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("patrolscope")
__all__ = ["__version__"]
