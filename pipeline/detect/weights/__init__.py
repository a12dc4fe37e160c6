"""Safe reading and writing of weight files, and the shipped weights."""
