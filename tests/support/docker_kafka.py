"""A broker of the tests that runs in a container, where there is no Java."""

from __future__ import annotations

from typing_extensions import Self

from karafka_lite.broker.docker import IMAGE, DockerBroker, connect
from karafka_lite.errors import KarafkaLiteError
from support.kafka_server import QUICK


def why_no_docker() -> str:
    """ "" where a Docker daemon answers."""
    try:
        connect().close()
    except KarafkaLiteError as error:
        return str(error)
    return ""


class DockerKafka:
    """One node in a container; its data outlives ``kill`` and ``stop``."""

    def __init__(self, *, image: str = IMAGE) -> None:
        self._broker = DockerBroker(image=image, settings=QUICK)
        self.bootstrap_servers = self._broker.bootstrap_servers
        self.wait_until_ready = self._broker.wait_until_ready

    def __enter__(self) -> Self:
        self._broker.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._broker.stop()

    def kill(self, node: int = 1) -> None:
        self._broker.container.kill()

    def stop(self, node: int = 1) -> None:
        self._broker.container.stop(timeout=20)

    def pause(self, node: int = 1) -> None:
        self._broker.container.pause()

    def resume(self, node: int = 1) -> None:
        self._broker.container.unpause()

    def restart(self, node: int = 1) -> None:
        self._broker.container.restart(timeout=20)
        self.wait_until_ready()
