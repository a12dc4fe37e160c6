"""Rendered street scenes as a dashcam sees them, with the boxes of police vehicles and officers known."""
