"""Waiting for an event instead of sleeping for a while."""

import subprocess
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], *, process: subprocess.Popen | None = None, timeout_s: float = 120
) -> None:
    """Return once a condition holds; fail after a time limit, or if the process that should bring it about ends."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"process ended with {process.poll()}"
        assert time.monotonic() < deadline_s, f"waited for {timeout_s:g} s"
        time.sleep(0.02)
