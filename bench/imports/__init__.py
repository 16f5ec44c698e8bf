"""Readers of other people's public results: each turns one kind of log into trials of a store of its own."""
