"""Chooses a bundle's prefill precision and schedule by measuring, and trains its learned scheduler."""
