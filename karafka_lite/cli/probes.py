"""``run --health-port`` and ``--health-file``: how an app is, for Kubernetes, systemd, Docker and Prometheus.

The server asks two functions, and does not know what it answers for: one process, or several.
"""

from __future__ import annotations

import argparse
import importlib.util
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from karafka_lite.cli import lines
from karafka_lite.cli.options import Parser, port
from karafka_lite.errors import ConfigurationError, describe
from karafka_lite.observers.health import Health
from karafka_lite.observers.metrics import CONTENT_TYPE, MISSING

EVERY_S = 1.0  # between two looks for the file
END_S = 0.2  # how long the server may take to see that it is over
SLOW_S = 5.0  # a client that says nothing for so long is left
PATHS = ("/live", "/ready", "/metrics")


class Sources(NamedTuple):
    """Where the answers come from. Both are called on threads of their own, again and again.

    ``metrics``: the text for Prometheus; raises ConfigurationError where it cannot be made.
    """

    health: Callable[[], Health]
    metrics: Callable[[], str]


def add_to(parser: Parser) -> None:
    """The options."""
    group = parser.add_argument_group("health", "Of all processes together, with --processes.")
    path = "its time moves each second as long as the app is live: for probes that look at a file's age"
    group.add_argument("--health-file", metavar="PATH", type=Path, help=path)
    answers = "answer /live and /ready with 200 or 503 and the reasons, and /metrics for Prometheus (needs the extra "
    group.add_argument("--health-port", metavar="PORT", type=port, help=answers + "karafka-lite[metrics])")
    host = "address for --health-port (default: 127.0.0.1; 0.0.0.0 for probes from elsewhere)"
    group.add_argument("--health-host", metavar="HOST", help=host)


@contextmanager
def watched(arguments: argparse.Namespace, sources: Sources) -> Iterator[None]:
    """Answer, and touch the file, inside the block. Raises ConfigurationError: a port is taken, a file not writable."""
    if arguments.health_host is not None and arguments.health_port is None:
        arguments.parser.error("--health-host requires --health-port")
    file: Path | None = arguments.health_file
    over = threading.Event()
    threads = []
    server = None
    if arguments.health_port is not None:
        server = _server(arguments.health_host or "127.0.0.1", arguments.health_port, sources)
        serve = partial(server.serve_forever, poll_interval=END_S)
        threads.append(threading.Thread(target=serve, name="karafka-health", daemon=True))
        if importlib.util.find_spec("prometheus_client") is None:
            lines.complain(f"karafka-lite: {MISSING}; /live and /ready work without it")
    if file is not None:
        try:
            file.touch()
        except OSError as error:
            raise ConfigurationError(f"--health-file {file}: {error.strerror or describe(error)}") from None
        look = (over, file, sources.health)
        threads.append(threading.Thread(target=_touch, args=look, name="karafka-health-file", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if server is not None:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def _touch(over: threading.Event, file: Path, health: Callable[[], Health]) -> None:
    while not over.wait(EVERY_S):
        if health().live:
            try:
                file.touch()
            except OSError:
                continue  # as for who looks at its age: it does not move


def _server(host: str, number: int, sources: Sources) -> ThreadingHTTPServer:
    class Answers(BaseHTTPRequestHandler):
        timeout = SLOW_S

        def do_GET(self) -> None:
            status, text = answer(self.path.partition("?")[0], sources)
            body = text.encode()
            self.send_response(status)
            kind = CONTENT_TYPE if self.path.startswith("/metrics") and status == 200 else "text/plain; charset=utf-8"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None: ...  # it would be a line for each probe
        def version_string(self) -> str:
            return "karafka-lite"

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # http.server's own would look for the name of the host
            self.server_name, self.server_port = host, number

        def handle_error(self, request: object, client_address: object) -> None: ...  # a client that has gone

    try:
        return Server((host, number), Answers)
    except OSError as error:
        why = error.strerror or describe(error)
        raise ConfigurationError(f"--health-port {number}: cannot listen on {host}:{number}: {why}") from None


def answer(path: str, sources: Sources) -> tuple[int, str]:
    """Status and text for a request of ``path``."""
    if path == "/metrics":
        try:
            return 200, sources.metrics()
        except ConfigurationError as missing:
            return 501, f"{missing}\n"
    if path not in PATHS:
        return 404, f"not found; there are {', '.join(PATHS)}\n"
    health, what = sources.health(), path[1:]
    good = health.live if what == "live" else health.ready
    return (200 if good else 503), "\n".join([what if good else f"not {what}", *health.reasons, ""])
