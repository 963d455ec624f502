"""The text formats of prompts and replies: rendering, parsing, updates and provenance. Pure."""
