"""Measuring what a device gains: for now, the random models to measure with."""
