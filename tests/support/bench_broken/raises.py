"""Raises when it is imported."""

raise RuntimeError("this plugin wants a compiler that is not here")
