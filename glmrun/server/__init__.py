"""The model for every program: HTTP, one file for each interface."""
