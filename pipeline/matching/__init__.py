"""Which detection belongs to which image, and the annotation of images."""
