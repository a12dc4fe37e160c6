"""The study folder: settings, files, manifest, ledger, and remote storage."""
