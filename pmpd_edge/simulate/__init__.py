"""An analytical model of devices: what answers would take on hardware that need not be at hand."""
