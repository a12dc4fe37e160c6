"""Pictures: maps, figures and the report, from annotated rows and estimates."""
