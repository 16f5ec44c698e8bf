"""Runs ``bench`` commands, each in a fork of this process, which has loaded torch and pandas once.

So thirty commands that are killed cost one start. A line of JSON on the standard input asks, a line answers:
``{"start": [ARGUMENTS], "out": FILE, "environment": {}, "limits": {}, "eager": false}`` is answered by the number of a
process, ``{"wait": NUMBER}`` and ``{"inside": [ARGUMENTS]}``, a program that sees the mounts of this process, by an
exit status. A worker that a command starts is a fork of the command; all else is as in ``bench`` itself.
"""

# ruff: noqa: T201 - the answers

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd  # noqa: F401 - loaded once for all, like the next three
import pyarrow.parquet as pq  # noqa: F401
import torch
import torch._dynamo  # what the first step of an optimizer would load

import bench.executor
import bench.plan
import bench.worker
from bench.calibration import Pinning
from bench.cli import main
from bench.worker_environment import DIE_WITH_PARENT


class Forked:
    """A process as :class:`subprocess.Popen` shows it, as far as an executor looks."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int | None:
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def start_worker(folder: Path) -> Forked:
    """Fork what ``bench.executor`` starts as a program."""
    parent = os.getpid()
    with (folder / "worker.log").open("ab") as output:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ[DIE_WITH_PARENT] = str(parent)
            become(["worker", str(folder / "trial.json")], output.fileno())
    return Forked(pid)


def become(arguments: list[str], output: int) -> None:
    """Be the command ``arguments``, whose words go to ``output``; never returns."""
    code = 3
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        sys.argv = ["bench", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 3
    finally:
        os._exit(code)


def start(request: dict) -> int:
    with open(request["out"], "wb") as output:  # noqa: PTH123 - the path may be any bytes
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.environ.update(request.get("environment", {}))
            tempfile.tempdir = None  # found once, by whoever asked first
            if request.get("eager"):
                bench.plan.CHECKPOINT_EVERY_S = 0.0
            for name, value in request.get("limits", {}).items():
                resource.setrlimit(getattr(resource, name), (value, value))
            become(request["start"], output.fileno())
    return pid


def serve() -> None:
    torch.set_num_threads(1)
    bench.worker.pin_threads = lambda _: Pinning(1, None, "a test")  # a fork must not start threads in a pool
    bench.executor._start = start_worker
    bench.executor.POLL_S = 0.02
    bench.executor.STOP_AGAIN_S = 2.0
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif "inside" in request:
            print(subprocess.call(request["inside"]), flush=True)
        else:
            print(start(request), flush=True)


if __name__ == "__main__":
    serve()
