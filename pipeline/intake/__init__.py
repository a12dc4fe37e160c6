"""Raw metadata, supplied columns, and detection files, validated and written as Parquet."""
