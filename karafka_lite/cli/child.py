"""The side of a process that another one has started: ``run --processes`` and ``run --reload``.

The parent holds the other end of a socket. It first sends its orders, a line of JSON with what goes before the options
of the command line; when its end is closed, this process stops in good order: it never outlives its parent for long.
In the other direction goes what the parent has to know: ``FED`` and ``WORKS``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress

from karafka_lite import events
from karafka_lite.cli import lines
from karafka_lite.cli.main import main as command

FED, WORKS = b"f", b"w"
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
        self._works = False
        threading.Thread(target=self._stop_with_it, name="karafka-parent", daemon=True).start()

    def tell(self, word: bytes) -> None:
        """Say that something is done."""
        with suppress(OSError):  # it is gone
            self._channel.sendall(word)

    def observe(self, event: events.Event) -> None:
        """For ``app.observe``: joined once, this process has nothing that only a person could put right."""
        if not self._works and isinstance(event, events.Assigned | events.Idle):
            self._works = True
            self.tell(WORKS)

    def _stop_with_it(self) -> None:
        with suppress(OSError):
            self._channel.recv(1)  # it sends nothing more
        os.kill(os.getpid(), signal.SIGTERM)


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
