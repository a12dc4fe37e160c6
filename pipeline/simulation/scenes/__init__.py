"""Rendered street scenes from the view of a dashcam, with known boxes of police vehicles and officers."""
