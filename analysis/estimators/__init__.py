"""Pure numerics: arrays in, arrays out. Imports neither Dask nor the engine."""
