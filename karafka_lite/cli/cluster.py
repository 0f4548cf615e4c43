"""Which cluster a command connects to, and whose offsets it is about."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

from karafka_lite.app import App
from karafka_lite.cli import config, importer
from karafka_lite.errors import ConfigurationError
from karafka_lite.settings import resolve_bootstrap_servers

if TYPE_CHECKING:
    from karafka_lite.client.admin import Admin


class Cluster(NamedTuple):
    """Where a cluster is, and the settings for it, as those of an App."""

    servers: Sequence[str]
    settings: Mapping[str, Any]


class Target(NamedTuple):
    """Groups with their topics; of a group that no App has these are the topics that the cluster knows of it."""

    cluster: Cluster
    groups: Mapping[str, Sequence[str]]

    @property
    def reset(self) -> str:
        """Where a partition without a commit begins."""
        return str(self.cluster.settings.get("auto_offset_reset", "earliest"))


def load(name: str) -> App:
    """As ``importer.load_app``; what the module prints goes to standard error, out of the way of what we answer."""
    with redirect_stdout(sys.stderr):
        return importer.load_app(name)


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    """The one of ``--broker``, ``--app`` and ``--config``."""
    if arguments.app is not None:
        return _of_app(load(arguments.app), arguments)
    servers, settings = config.of_no_app(arguments.config)
    return Cluster(resolve_bootstrap_servers(arguments.broker, os.environ, servers), settings)


def target_of(arguments: argparse.Namespace) -> Target:
    """The groups of ``module:app``, or ``--group`` with the topics that it has in ``--app``, if it is in there."""
    if (arguments.target is None) == (arguments.group is None):
        arguments.parser.error("give either module:app or --group GROUP")
    if arguments.target is not None and arguments.app is not None:
        arguments.parser.error("--app is for --group; module:app has its own brokers and settings")
    if arguments.target is None and arguments.app is None:
        return Target(cluster_of(arguments), {arguments.group: ()})
    app = load(str(arguments.app or arguments.target))
    groups = {group: list(topics) for group, topics in app.groups.items()}
    if arguments.group is not None:
        groups = {arguments.group: groups.get(arguments.group, [])}
    return Target(_of_app(app, arguments), groups)


@contextmanager
def connected(cluster: Cluster) -> Iterator[Admin]:
    """A client that asks the cluster. Raises BrokerUnavailableError, AccessError, ConfigurationError."""
    from karafka_lite.client.admin import Admin

    admin = Admin(*cluster)
    try:
        admin.connect()
        yield admin
    finally:
        admin.close()


def topics_of(admin: Admin, group_id: str, named: Sequence[str]) -> list[str]:
    """``named``, or else the topics that the group has committed or its members own. Raises ConfigurationError."""
    if named:
        return sorted(named)
    owned = {topic for member in admin.members(group_id) for topic, _ in member.partitions}
    topics = sorted(owned | {topic for topic, _ in admin.commits(group_id)})
    if not topics:
        raise ConfigurationError(f"group {group_id} has no committed offset and no members; is that its name?")
    return topics


def _of_app(app: App, arguments: argparse.Namespace) -> Cluster:
    app.override(bootstrap_servers=arguments.broker, settings=config.load_if(arguments.config))
    return Cluster(app.brokers(), app.config.settings)
