"""What runs at the end of the program is ended in good order, at the moment when it still can be."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys, threading
from concurrent.futures import ThreadPoolExecutor

from karafka_lite import exits

def say(*words):
    print(*words, flush=True)

class Service:
    def __init__(self, name, end):
        self.name, self.end, self.over = name, end, False
        exits.end_before_exit(self)

    def __repr__(self):
        return self.name

    def end_at_exit(self):
        if not self.over:  # asked at the end of the main thread, and by atexit
            self.over = True
            say(self.name, "ends:", self.end())

pool = ThreadPoolExecutor(1)
pool.submit(int).result()  # at its end no Python from 3.12 on starts a thread
first = Service("first", lambda: "the pool says %d" % pool.submit(lambda: 7).result() if not late else "late")
broken = Service("broken", lambda: 1 / 0)
Service("forgotten", lambda: "never")
gc.collect()
assert exits.known() == [broken, first]
late = "late" in sys.argv
may_end = threading.Event()

def work():
    threading.main_thread().join()
    may_end.wait(0.3)  # longer than all that Python does at its end
    say("the thread ends")

if late:
    threading.Thread(target=work).start()
say("the main thread ends")
"""


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("", ["the main thread ends", "first ends: the pool says 7"]),
        ("late", ["the main thread ends", "the thread ends", "first ends: late"]),
    ],
    ids=["while executors work", "not before another thread that keeps the program running"],
)
def test_it_ends_what_is_still_there_and_one_that_fails_matters_to_nobody(argument: str, told: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told
    assert "broken could not be ended before the program" in done.stderr
    assert "ZeroDivisionError" in done.stderr
