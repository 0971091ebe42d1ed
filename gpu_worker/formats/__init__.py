"""Checkpoint formats: every one answers `read this tensor, or this part of it`."""
