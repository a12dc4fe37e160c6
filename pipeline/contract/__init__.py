"""Tables that cross a stage: columns, types, units, bounds, and published names."""
