"""report.html, the reproduction of the paper, and terminal tables."""
