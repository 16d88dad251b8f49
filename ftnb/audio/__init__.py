"""Recordings: reading, sources, listening, backbones."""
