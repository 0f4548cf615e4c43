"""The topics of an App before it runs: created, or demanded."""

from __future__ import annotations

from karafka_lite.app import App
from karafka_lite.cli import lines
from karafka_lite.errors import ConfigurationError


def create_topics(app: App, partitions: int | None, replication_factor: int | None) -> None:
    """Create those that do not exist. None: as the brokers have it by default.

    Raises:
        BrokerUnavailableError, AccessError, ClusterError: the cluster cannot be asked.
        ConfigurationError: one cannot be created.
    """
    from karafka_lite.cli.cluster import Cluster, connected

    with connected(Cluster(app.brokers(), app.config.settings)) as admin:
        created = sorted(admin.ensure_topics(topics_of(app), partitions or -1, replication_factor or -1))
    if created:
        lines.say(f"created topics: {', '.join(created)}", topics=created)


def demand_topics(app: App) -> None:
    """Raises ConfigurationError: one does not exist; and as ``create_topics``."""
    from karafka_lite.cli.cluster import Cluster, connected

    with connected(Cluster(app.brokers(), app.config.settings)) as admin:
        found = {topic for topic, _ in admin.partitions(topics_of(app))}
    if missing := sorted(set(topics_of(app)) - found):
        raise ConfigurationError(
            f"missing topics: {', '.join(missing)} (or no Describe permission); create them, or use --create-topics"
        )


def topics_of(app: App) -> list[str]:
    """What an App consumes, in the order of registration."""
    return list(dict.fromkeys(topic for topics in app.groups.values() for topic in topics))
