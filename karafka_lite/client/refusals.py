"""What a broker refuses a member for good: the right or the setting that is missing, and what to type."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import kafka.errors
from kafka.protocol.metadata import MetadataRequest

from karafka_lite.errors import AccessError, ConfigurationError, PollError

ACL = "kafka-acls.sh --add --allow-principal User:NAME"


def topics_refused(topics: Collection[str], group_id: str) -> str:
    """Topics may not be read, or not even be seen."""
    names = sorted(topics)
    which = f"topic{'s' * (len(names) > 1)} {', '.join(names)}"
    options = " ".join(f"--topic {name}" for name in names)
    return f"{which} may not be read (TopicAuthorizationFailed); use {ACL} --consumer --group {group_id} {options}"


def writes_refused(topics: Collection[str]) -> str:
    """Topics for dead letters may not be seen by who has to write to them, and perhaps do not exist."""
    options = " ".join(f"--topic {name}" for name in topics)
    return (
        f"dead-letter topics may not be seen or created: {', '.join(topics)} (TopicAuthorizationFailed); use {ACL} "
        f"--producer {options}, and if they do not exist kafka-topics.sh --create {options}"
    )


def ids_refused(group_id: str) -> str:
    """No transactional id of the group may be used."""
    rights = f"--operation Write --operation Describe --transactional-id {group_id} --resource-pattern-type prefixed"
    return (
        f"group {group_id}: transactional ids that begin with {group_id} may not be used, which exactly_once needs "
        f"(TransactionalIdAuthorizationFailed); use {ACL} {rights}"
    )


def explained(error: kafka.errors.KafkaError, group_id: str, settings: Mapping[str, Any]) -> Exception:
    """What a join or a fetch has raised, as an error of this package: AccessError or ConfigurationError for good."""
    if isinstance(error, kafka.errors.TopicAuthorizationFailedError) and error.args:
        return AccessError(topics_refused(error.args[0], group_id))
    if isinstance(error, kafka.errors.GroupAuthorizationFailedError):
        command = f"{ACL} --operation Read --group {group_id}"
        return AccessError(f"group {group_id} may not be joined (GroupAuthorizationFailed); use {command}")
    if isinstance(error, kafka.errors.AuthorizationError):
        return AccessError(f"group {group_id}: a right is missing ({error})")
    if isinstance(error, kafka.errors.InvalidSessionTimeoutError):
        given = f"session_timeout_ms={settings.get('session_timeout_ms', 45_000)}"
        bounds = "group.min.session.timeout.ms and group.max.session.timeout.ms"
        return ConfigurationError(f"group {group_id}: the broker refuses {given}: it must be between its {bounds}")
    if isinstance(error, kafka.errors.InconsistentGroupProtocolError):
        return ConfigurationError(
            f"group {group_id} has members that share no assignor with us (InconsistentGroupProtocol): other programs, "
            f"or not consumers; stop them, or use another group_id"
        )
    if isinstance(error, kafka.errors.InvalidGroupIdError):
        return ConfigurationError(f"the broker refuses the group_id {group_id!r} (InvalidGroupId); use another one")
    if isinstance(error, kafka.errors.FencedInstanceIdError):
        return ConfigurationError(
            f"group {group_id}: another process has taken the place of group_instance_id="
            f"{settings.get('group_instance_id')!r}; give each process one of its own (FencedInstanceId)"
        )
    return PollError(str(error))


def refused_topics(client: Any, topics: Collection[str], timeout_ms: int) -> set[str]:
    """Those of ``topics`` that we may not see. Asked for by name, Kafka says so; else it leaves them out."""
    manager, wanted = client._manager, [MetadataRequest.MetadataRequestTopic(name=topic) for topic in topics]

    async def ask() -> Any:
        request = MetadataRequest(topics=wanted, allow_auto_topic_creation=False)
        return await manager.wait_for(manager.send(request), timeout_ms)

    answer = client._net.run(ask)
    denied = kafka.errors.TopicAuthorizationFailedError.errno
    return {topic.name for topic in answer.topics if topic.error_code == denied}
