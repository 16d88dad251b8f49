"""Texts to classify: read with one label, with several, or in pairs; tables of what a model gets wrong."""
