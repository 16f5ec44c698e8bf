"""A process that did not make a model: it loads what was saved and says what it computes.

It is started when it is first needed and serves all later models, since importing torch takes longer than any of them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.conformance.check import CheckFailed

SERVER = """
import json, sys, traceback
sys.path[:] = json.loads(sys.argv[1])
import torch
torch.set_num_threads(1)
for line in sys.stdin:
    path = json.loads(line)
    try:
        saved = torch.load(path, weights_only=False)
        with torch.no_grad():
            torch.save(saved["model"](saved["inputs"]), path + ".outputs")
        answer = ""
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


class Loader:
    """The process, started anew when modules are looked for elsewhere, and ended with this one."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def load(self, file: str) -> str:
        """Let it load ``file`` and run the model in it; return what went wrong, or nothing."""
        process = self._started()
        assert process.stdin is not None, "it was started with pipes"
        assert process.stdout is not None, "it was started with pipes"
        try:
            process.stdin.write(json.dumps(file) + "\n")
            process.stdin.flush()
            answer: str = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            self.stop()
            return "nothing, but the process ended"
        return answer

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            for pipe in (self._process.stdout, self._process.stdin):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.wait(timeout=60)
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._path != sys.path:
            self.stop()
            self._path = list(sys.path)
            self._process = subprocess.Popen(  # noqa: S603 - our own program, with no shell
                [sys.executable, "-c", SERVER, json.dumps(self._path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._process


LOADER = Loader()
atexit.register(LOADER.stop)


def outputs_elsewhere(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what ``model`` computes from ``inputs`` after it was saved and loaded in another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model.pt"))
        try:
            torch.save({"model": model, "inputs": inputs}, path)
        except Exception as error:
            raise CheckFailed(f"torch.save raised {type(error).__name__}: {error}") from error
        problem = LOADER.load(path)
        if problem:
            raise CheckFailed(f"in another process the saved model raised {problem}")
        found: Tensor = torch.load(f"{path}.outputs", weights_only=True)
        return found
