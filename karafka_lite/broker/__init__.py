"""Brokers for development and tests. Production is Apache Kafka."""

from karafka_lite.broker.docker import DockerBroker
from karafka_lite.broker.embedded import EmbeddedBroker

__all__ = ["DockerBroker", "EmbeddedBroker"]
