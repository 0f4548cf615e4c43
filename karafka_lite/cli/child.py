"""The side of a process that another one has started: ``run --processes`` and ``run --reload``.

The parent holds the other end of a socket. It first sends its orders, a line of JSON with what goes before the options
of the command line, and then ``ASK`` whenever it wants to know how this process is; when its end is closed, this one
stops in good order: it never outlives its parent for long. In the other direction go lines of JSON: ``FED`` and
``WORKS`` when it is so, and answers, objects with ``health`` and ``reading``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from karafka_lite import events
from karafka_lite.app import App
from karafka_lite.cli import lines
from karafka_lite.cli.main import main as command
from karafka_lite.observers.health import Health
from karafka_lite.observers.metrics import Reading

FED, WORKS = "fed", "works"
ASK = b"?"
PROGRAM = (  # not -m: a module of the user's in the current directory could take the place of one of Python's
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "from karafka_lite.cli.child import main; sys.exit(main())"
)


class Parent:
    """Who has started this process.

    Attributes:
        prepared: it has created topics and sent files.
        banner: it wants the banner to be shown.
        broker: the kind of the one that it has started; "": none.
    """

    def __init__(self, channel: socket.socket, prepared: bool, banner: bool, broker: str) -> None:
        self.prepared, self.banner, self.broker = prepared, banner, broker
        self._channel = channel
        self._saying = threading.Lock()
        self._works = False
        self._app: App | None = None
        threading.Thread(target=self._answer_it, name="karafka-parent", daemon=True).start()

    def meet(self, app: App) -> None:
        """All is prepared, and this is the App that runs from here on."""
        self._tell(FED)
        self._app = app
        app.observe(self.observe)

    def observe(self, event: events.Event) -> None:
        """For ``app.observe``: joined once, this process has nothing that only a person could put right."""
        if not self._works and isinstance(event, events.Assigned | events.Idle):
            self._works = True
            self._tell(WORKS)

    def _answer_it(self) -> None:
        with suppress(OSError):
            while self._channel.recv(1) == ASK:
                app = self._app
                health = app.health() if app else Health(live=True, ready=False, reasons=("is starting",))
                reading = app.reading() if app else Reading()
                self._tell({"health": astuple(health), "reading": reading.plain()})
        os.kill(os.getpid(), signal.SIGTERM)

    def _tell(self, what: Any) -> None:
        with suppress(OSError), self._saying:  # it may be gone
            self._channel.sendall(json.dumps(what).encode() + b"\n")


def main() -> int:
    """The entry of ``PROGRAM``: the arguments are the number of a file, and a command line."""
    channel = socket.socket(fileno=int(sys.argv.pop(1)))
    channel.set_inheritable(False)
    with channel.makefile("rb", buffering=0) as file:
        orders = json.loads(file.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the parent as well, who passes on a SIGTERM
    lines.of_process(orders.pop("number"))
    parent = Parent(channel, orders.pop("prepared"), orders.pop("banner"), orders.pop("broker_kind"))
    return command(sys.argv[1:], {**orders, "parent": parent})
