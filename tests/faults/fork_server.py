"""A process that has everything imported and runs each command in a child of its own, which may be told to die.

    python fork_server.py WARM.json

A command takes seconds to import and, on a tiny model, about one to run; a test that kills it a hundred times cannot
pay the first a hundred times. Requests are lines of JSON on standard input, answers lines on standard output; the
descriptor that commands print to is a file. Each child calls ``qlassify.cli.app.main`` as the installed command does.

A child dies by SIGKILL, which it sends to itself before its n-th durable operation (``kill_at``), or which its parent
sends after some seconds (``kill_after``). ``signals`` may name other signals, one after another. Durable operations
are those that change something under ROOT: opening for writing, renaming, removing, making and removing folders, and
fsync. Python announces all but the last to audit hooks, so none has to be known by name beforehand, whichever library
asks for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.truncate": None, "shutil.rmtree": None}
"""Audit event -> where in its arguments the descriptor of the folder stands that the path is relative to."""


class Watch:
    """Counts durable operations under a folder and kills the process before one of them."""

    def __init__(self, root: str, kill_at: int | None, signals: list[int]) -> None:
        self.root = root
        self.kill_at = kill_at
        self.signals = signals
        self.operations: list[str] = []

    def start(self) -> None:
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            self._seen("fsync", os.readlink(f"/proc/self/fd/{int(descriptor)}"))
            fsync(descriptor)

        os.fsync = watched
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and flags & WRITES:
                self._seen(event, os.path.abspath(os.fsdecode(path)))
        elif event in CHANGES:
            place = CHANGES[event]
            folder = arguments[place] if place is not None and len(arguments) > place else -1
            named = arguments[0]
            path = os.readlink(f"/proc/self/fd/{named}") if isinstance(named, int) else os.fsdecode(named)
            if isinstance(folder, int) and folder >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            self._seen(event, os.path.abspath(path))

    def _seen(self, event: str, path: str) -> None:
        if not path.startswith(self.root):
            return
        self.operations.append(f"{event} {path.removeprefix(self.root)}")
        if len(self.operations) - 1 == self.kill_at:
            for number in self.signals:
                os.kill(os.getpid(), number)


def child(request: dict[str, Any], answer: int) -> NoReturn:
    """Run one command and tell the parent which operations it made."""
    from qlassify.cli.app import main

    os.chdir(request["folder"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["qlassify", *request["arguments"]]
    watch = Watch(request["folder"], request.get("kill_at"), request.get("signals", [signal.SIGKILL]))
    watch.start()
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(answer, "w") as file:
        json.dump({"code": code or 0, "operations": watch.operations}, file)
    os._exit(0)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for a request and wait for it."""
    reading, writing = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(reading)
        child(request, writing)
    os.close(writing)
    limit = request.get("kill_after", 120.0)
    # The pipe closes when the child ends, whichever way.
    text, killed = b"", False
    signals = request.get("signals", [signal.SIGKILL])
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, started + limit - time.monotonic()))
        if not ready:
            if killed:
                signals = [signal.SIGKILL]
            for number in signals:
                os.kill(process, number)
            killed, limit = True, limit + 120.0
            continue
        block = os.read(reading, 1 << 16)
        if not block:
            break
        text += block
    os.close(reading)
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - started
    if os.WIFSIGNALED(status):
        if killed and "kill_after" not in request:
            return {"code": "hung", "operations": [], "seconds": seconds}
        return {"code": -os.WTERMSIG(status), "operations": [], "seconds": seconds}
    return {**json.loads(text), "seconds": seconds}


def warm(settings: dict[str, Any], folder: Path) -> None:
    """Load and compile what commands need, up to the first use of a library that has threads of its own."""
    import matplotlib.pyplot
    import polars
    import sklearn.linear_model
    import torch

    import qlassify.calibrating
    import qlassify.cli.show
    from qlassify import job
    from qlassify.training.events import TrainingEndEvent

    torch.set_num_threads(1)
    events = job.train(settings, folder)
    with contextlib.closing(events):  # type: ignore[type-var]
        next(event for event in events if isinstance(event, TrainingEndEvent))
    assert all((matplotlib.pyplot, polars, sklearn.linear_model, qlassify))  # imported to be there


def main() -> None:
    """Answer requests until standard input ends."""
    plan = Path(sys.argv[1])
    warm(json.loads(plan.read_text()), plan.with_suffix(".run"))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


class ForkServer:
    """The test's end of it.

    Args:
        settings: of a training run to warm up with.
        scratch: a folder for its own files.
    """

    def __init__(self, settings: dict[str, Any], scratch: Path) -> None:
        self._output = scratch / "output.txt"
        plan = scratch / "warm.json"
        plan.write_text(json.dumps(settings))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "POLARS_MAX_THREADS": "1"}
        with (scratch / "server.txt").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        assert self._answer() == "ready"

    def run(self, root: Path, *arguments: object, **how: Any) -> dict[str, Any]:
        """Run ``qlassify`` with arguments in the folder ``root``, under which operations count.

        ``kill_at`` or ``kill_after`` say when to kill it, ``signals`` how.

        Returns:
            ``code``, negative for a signal; ``operations``, none where it was killed; ``seconds``; ``output``.
        """
        request = {"arguments": list(map(str, arguments)), "folder": str(root), "output": str(self._output), **how}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert isinstance(answer, dict)
        return {**answer, "output": self._output.read_text(errors="replace")}

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server has ended; see server.txt"
        return json.loads(line)

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


if __name__ == "__main__":
    main()
