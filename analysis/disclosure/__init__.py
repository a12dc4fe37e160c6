"""Disclosure control: suppression, synthetic replicates, and the release folder."""
