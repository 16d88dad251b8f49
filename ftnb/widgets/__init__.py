"""Widget plumbing: what draws and what forwards clicks. Nothing here decides anything about a training."""
