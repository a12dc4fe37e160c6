"""Dashboards in the browser: the map, disparities, detector, coverage, run."""
