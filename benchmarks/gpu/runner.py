"""How a part is run: in a process of its own, for so long at most, and nothing it said is lost."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from npgpt.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 40  # of what a part printed, kept if it ends without a word


def run_part(part, wishes, kept, log, tell):
    """Run one part.

    Args:    part; wishes, what it is asked for, as a dict, with the seconds that it may take; kept,
             the file of its rows, one by one; log, a file that gets all it prints; tell, called
             with its rows so far whenever there are more.
    Returns: its rows; the last one says so, with a bar that is missed, if it ended before its end.
    """
    heading = f"--- {part}, for {wishes['seconds']:.0f} s at most\n"
    print(heading, end="", flush=True)
    log.write(heading)
    command = [sys.executable, "-u", "-m", f"benchmarks.gpu.{part}", str(kept), json.dumps(wishes)]
    if part == "sanitize":
        command = sanitizer() + command
    # The text's products are small: what many threads of OpenBLAS do with them is wait.
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    late, last, count = threading.Event(), [], 0
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace", start_new_session=os.name == "posix",
    ) as process:  # fmt: skip

        def stop():
            late.set()
            kill(process)

        timer = threading.Timer(wishes["seconds"], stop)
        timer.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()
            last = [*last, line][-LAST_LINES:]
            rows = read_rows(part, kept)
            if len(rows) > count:
                count = len(rows)
                tell(rows)
        status = process.wait()
        timer.cancel()
        kill(process)  # and what it started, which may outlive it
    rows = read_rows(part, kept)
    if late.is_set() or status != 0:
        said = next((line.strip() for line in reversed(last) if line.strip()), "")
        why = f"status {status}: {said}"
        if late.is_set():
            why = f"it took longer than {wishes['seconds']:.0f} s"
        print(f"{part} failed: {why}", flush=True)
        rows.append(failure(f"{part} failed: {why}", "".join(last)) | {"part": part})
    return rows


def failure(said, trace, met=False):
    """The row of something that could not be measured.

    Args:    said, a sentence; trace, all that is known of it; met, None if it misses no bar.
    """
    return dict(
        name=said[:200], value=None, unit="", at_least=None, at_most=None, met=met, trace=trace
    )


def read_rows(part, kept):
    """The rows that a part has written whole."""
    lines = kept.read_text("utf-8").splitlines(keepends=True) if kept.exists() else []
    return [{"part": part, **json.loads(line)} for line in lines if line.endswith("\n")]


def kill(process):
    """End a process and those that it started."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, 9)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass


def sanitizer():
    """The command that runs a program under NVIDIA's memory checker."""
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if found is None:
        raise UserError("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    return [found, "--tool", "memcheck", "--error-exitcode", "9"]
