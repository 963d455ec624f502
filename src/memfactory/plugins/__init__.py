"""Users' own components: loaded, trusted, and named in errors with file and line."""
