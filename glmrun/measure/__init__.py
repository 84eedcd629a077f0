"""Measurements: what is run and what came out, as plain data. Nothing here prints."""
