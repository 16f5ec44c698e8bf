"""The verbs of the command line, one module each, with a ``command`` that :mod:`bench.cli` loads when it is called."""
