"""Boxes: formats, sources, checks, detectors."""
