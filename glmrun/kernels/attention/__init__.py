"""Latent attention over cached rows."""
