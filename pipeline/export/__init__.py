"""Export of the wide published file."""
