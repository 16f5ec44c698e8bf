"""The built-in algorithms, one file each, grouped by track."""
