"""Data that ftnb generates itself: no download, the same on every machine."""
