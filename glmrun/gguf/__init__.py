"""A model file, proven."""
