"""Safe reading and writing of weights files, and the shipped weights."""
