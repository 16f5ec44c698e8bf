"""The ``bench`` command, followed by a line on standard error that names the top-level modules it has imported."""

from __future__ import annotations

import sys

from bench.cli import main

code = main()
sys.stdout.flush()
sys.stderr.write("modules: " + " ".join(sorted({name.partition(".")[0] for name in sys.modules})) + "\n")
sys.exit(code)
