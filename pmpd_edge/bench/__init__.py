"""Measuring what a device gains from lower levels and from stepping down to them."""
