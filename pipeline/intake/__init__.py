"""Raw metadata and detection files, validated and written as Parquet."""
