"""Plugin modules with one fault each, found before anything runs."""
