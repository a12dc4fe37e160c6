"""What may be published: suppression, synthetic replicates, and the release folder."""
