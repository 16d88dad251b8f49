"""Tools that keep lessons, notebooks and modules in step; not part of the package."""
