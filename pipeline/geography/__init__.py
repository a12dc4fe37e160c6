"""Geometry: projections, point location, nearest neighbours, order on a curve. Knows no table and no study."""
