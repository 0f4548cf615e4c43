"""``karafka_lite.broker``: what it exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

import karafka_lite
from karafka_lite import broker
from karafka_lite.broker import DockerBroker, EmbeddedBroker


def test_both_brokers_can_be_imported_from_the_package() -> None:
    assert EmbeddedBroker.__module__ == "karafka_lite.broker.embedded"
    assert DockerBroker.__module__ == "karafka_lite.broker.docker"
    assert broker.__all__ == ["DockerBroker", "EmbeddedBroker"]
    assert set(broker.__all__) <= set(dir(broker))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'karafka_lite\.broker' has no attribute 'KafkaBroker'"):
        _ = broker.KafkaBroker


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import karafka_lite.broker", []),
        ("from karafka_lite.broker import EmbeddedBroker", ["embedded"]),
        ("from karafka_lite.broker import DockerBroker", ["docker"]),
    ],
)
def test_a_broker_is_loaded_when_it_is_used(statement: str, loaded: list[str]) -> None:
    program = (
        f"import sys\n{statement}\n"
        "print([name for name in ('docker', 'embedded') if f'karafka_lite.broker.{name}' in sys.modules])"
    )
    root = Path(karafka_lite.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{loaded}\n", "")


def test_waiting_for_the_embedded_broker_ends_when_it_is_stopped() -> None:
    started = EmbeddedBroker()
    started.start()
    stopping = threading.Timer(0.1, started.stop)
    stopping.start()
    started.wait()
    stopping.join()
    started.wait()  # returns at once
