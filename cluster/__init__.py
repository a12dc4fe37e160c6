"""Clusters: profiles, job scripts, worker pools, and certificates. Independent of the other packages."""
