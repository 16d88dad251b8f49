"""Pictures: reading, sources, backbones."""
