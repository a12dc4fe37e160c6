"""Rasters, tiles, color scales, and legends of the city."""
