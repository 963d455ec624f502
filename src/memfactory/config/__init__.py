"""Configuration: schema, composition, overrides, errors with file and line."""
