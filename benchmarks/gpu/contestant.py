"""A contestant: a process that does as it is told, and sleeps in between."""

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class ContestantError(RuntimeError):
    """A contestant has failed.

    Attributes: trace, its traceback, where it could still tell it.
    """

    def __init__(self, said, trace=None):
        super().__init__(said)
        self.trace = trace


class Contestant:
    """A process, and a line to it. What it says by the way goes where this process's errors go.

    Args:    module, of benchmarks.gpu, whose `live` mode it runs; words, for its command line.
    """

    def __init__(self, module, *words):
        command = [sys.executable, "-u", "-m", f"benchmarks.gpu.{module}", "live", *map(str, words)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, seconds=60.0, **what):
        """Tell it to do something, and hear what came of it."""
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.hear(seconds)

    def hear(self, seconds):
        """Its next answer.

        Raises:  ContestantError if it has failed; TimeoutError if it says nothing.
        """
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"it said nothing for {seconds:.0f} s") from None
        if line is None:
            raise ContestantError(f"its process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"], answer["trace"])
        return answer

    def stop(self):
        """End it: there is nothing that it would have to save."""
        self.process.kill()
        self.process.wait()
