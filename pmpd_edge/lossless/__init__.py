"""Lossless decoding: a low level drafts, the level that the schedule asks for verifies, in one context."""
