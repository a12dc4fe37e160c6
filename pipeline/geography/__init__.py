"""Public data layers and geometry: catalog, readers, point location, nearest neighbors, order along a curve."""
