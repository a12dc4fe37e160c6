"""Studies with known truth: rides, a detector, public data, and rendered scenes."""
