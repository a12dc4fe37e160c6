"""Rows: metadata and images in, annotated rows out. Knows no estimator, no picture, no machine."""
