"""Geometry: projections, point location, nearest neighbors, order on a curve. Knows no table and no study."""
