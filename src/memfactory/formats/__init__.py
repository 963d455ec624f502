"""What models are shown and what they reply: rendering, parsing, updates and provenance. Pure."""
