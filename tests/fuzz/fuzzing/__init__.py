"""Fuzzing of everything that reads what others wrote: inputs by seed, properties that hold for every one of them."""
