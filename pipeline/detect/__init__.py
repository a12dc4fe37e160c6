"""From pixels to boxes: YOLOv7 of our own, other detectors behind the same protocol."""
