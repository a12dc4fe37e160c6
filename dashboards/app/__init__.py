"""Web pages of a study: map, disparities, detector, image coverage, and run."""
