"""The wide published file."""
