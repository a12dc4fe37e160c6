"""Stages that load tables, call an estimator, and write results."""
