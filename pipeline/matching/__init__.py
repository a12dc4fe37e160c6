"""Name and path keys, matching of detections to images, and annotation of images."""
