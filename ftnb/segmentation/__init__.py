"""Masks: files, sources, checks, models."""
