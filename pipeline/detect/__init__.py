"""Object detection: image index, image decoding, batching, and detectors behind one protocol."""
