"""Numbers: annotated rows in, calibrated disparities with intervals out."""
