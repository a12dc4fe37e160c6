"""Detectors behind one protocol: YOLOv7, ONNX exports, and Ultralytics models."""
