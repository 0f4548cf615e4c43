"""In a forked child nothing waits for a lock of its parent, and no call of user code comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import karafka_lite

PROGRAM = """
import os, signal, sys, threading, time
from karafka_lite import App, forks
from karafka_lite.cli.broker import sigterm_as_ctrl_c
from karafka_lite.errors import ConfigurationError
from karafka_lite.forks import call, watch
from karafka_lite.signals import SIGNALS, Signals

class Owner:
    lock = threading.Lock()

def refused(use):
    try:
        use()
    except ConfigurationError as error:
        return "belongs to the process that started it" in str(error)
    return False

owner, unwatched = Owner(), Owner()
owner.lock.acquire()  # as if another thread had it at the fork
watch(owner)
before = [signal.getsignal(number) for number in SIGNALS]
around = sigterm_as_ctrl_c()  # of the command line
around.__enter__()
app, idle = App("g"), App("g", bootstrap_servers="127.0.0.1:1", bootstrap_timeout_ms=100)
app.topic("t")(lambda batch, ctx: None)
runner = app._claim()  # as start does, without a broker
sent = App("g")
sent._sender._begin()  # as a first message does
idle._sender._lock.acquire()  # as if another thread were sending its first message at the fork
with Signals():
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        assert owner.lock.locked(), "the parent's own lock stays what it was"
        assert [signal.getsignal(number) for number in SIGNALS] != before
        runner.ended.set()
        assert app.stop() is True
    else:
        facts = [
            refused(lambda: owner.lock.acquire()),
            refused(lambda: owner.lock.__enter__()),
            unwatched.lock.acquire(False) is False,
            [signal.getsignal(number) for number in SIGNALS] == before,
            refused(app.start), refused(app.stop), refused(app.run),
            refused(lambda: app.produce("t", 1)), refused(lambda: sent.produce("t", 1)), refused(sent.stop),
            idle.stop() is True,  # it runs nowhere
            "no broker" in str(idle.produce("t", 1).exception()),
        ]
        os._exit(0 if all(facts) else print(facts, flush=True) or 1)

# a signal right after the fork is not lost

with Signals():
    for _ in range(50):
        child = os.fork()
        if not child:
            time.sleep(1)
            os._exit(1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
around.__exit__(None, None, None)
assert [signal.getsignal(number) for number in SIGNALS] == before

# what runs in a call of user code, and how its child ends

def forking(then):
    def function(number):
        global child
        child = os.fork()
        if not child:
            sys.stdout.write("last words ")
            then()
    return function

def fail():
    raise ValueError("in the child")

def hard():
    os._exit(7)

def message():
    sys.exit("why")

ended = []
for then in (sys.exit, lambda: sys.exit(3), message, fail, lambda: None, hard):
    call(forking(then), 1)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert ended == [0, 3, 1, 1, 0, 7], ended
try:
    call(fail_here := lambda: 1 / 0)
except ZeroDivisionError:
    print("the parent is fine", flush=True)
"""


def test_a_child_is_refused_what_is_its_parents_and_ends_where_a_call_of_user_code_ends() -> None:
    root = Path(karafka_lite.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("the parent is fine")) == (0, 1), done.stderr
    assert done.stdout.count("last words ") >= 5, "what was printed is written; os._exit() leaves that to itself"
    assert "ValueError: in the child" in done.stderr
    assert "forks.py" not in done.stderr, "a traceback begins in the user's function"
    assert "why\n" in done.stderr
