"""Training of YOLOv7: data, augmentation, assignment, loss, schedule, and training loop."""
