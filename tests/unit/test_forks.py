"""In a forked child nothing waits for a lock of its parent, which nobody would release."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import karafka_lite

PROGRAM = """
import os, threading
from karafka_lite.errors import ConfigurationError
from karafka_lite.forks import watch

class Owner:
    lock = threading.Lock()

owner, unwatched = Owner(), Owner()
owner.lock.acquire()  # as if another thread had it at the fork
watch(owner)
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    assert owner.lock.locked(), "the parent's own lock stays what it was"
    print("the child is fine")
else:
    for use in (lambda: owner.lock.acquire(), lambda: owner.lock.__enter__()):
        try:
            use()
        except ConfigurationError as error:
            assert "belongs to the process that started it" in str(error), error
        else:
            os._exit(1)
    os._exit(0 if unwatched.lock.acquire(False) is False else 2)
"""


def test_a_child_that_asks_for_its_parents_lock_is_refused() -> None:
    root = Path(karafka_lite.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the child is fine\n", "")
