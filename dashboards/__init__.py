"""Figures, maps, reports, and web pages from annotated rows and estimates."""
