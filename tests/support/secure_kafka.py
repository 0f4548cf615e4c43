"""A Kafka with its own CA, users with passwords, and ACLs: one listener for each way to connect, and to fail to.

CLEAR      plain text; who comes here is a super user (the tests' own clients, and the broker itself)
SASL       plain text with PLAIN and SCRAM-SHA-256; SCRAM clients have to authenticate again after 2 s
SASL_TLS   TLS with SCRAM-SHA-256
TLS        TLS
MUTUAL     TLS that asks for a client certificate
EXPIRED    TLS with a certificate that has expired
ELSEWHERE  TLS with a certificate for another host
LOST       plain text; tells its clients an address that does not exist
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from typing_extensions import Self

from support.kafka_server import JavaKafka, free_ports

USER, PASSWORD = "app", "correct-horse-7d1"
NEVER_EXISTS = "broker.invalid"
PROTOCOLS = {
    "SASL": "SASL_PLAINTEXT",
    "SASL_TLS": "SASL_SSL",
    "LOST": "PLAINTEXT",
    **dict.fromkeys(["TLS", "MUTUAL", "EXPIRED", "ELSEWHERE"], "SSL"),
}
CERTIFICATES = {"EXPIRED": "expired", "ELSEWHERE": "elsewhere"}  # of a listener; else "server"


class Certificates:
    """PEM files in a folder: ``ca``, what it has issued, ``other_ca`` and a client's of that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        here = "subjectAltName=IP:127.0.0.1"
        for ca in ("ca", "other_ca"):
            self._openssl("req", "-x509", *self._new_key(ca), "-out", self.cert(ca), "-days", "2", "-subj", f"/CN={ca}")
        self._issue("server", here)
        self._issue("expired", here, days=-1)
        self._issue("elsewhere", "subjectAltName=DNS:elsewhere.example")
        self._issue("client", "keyUsage=digitalSignature")
        self._issue("expired_client", "keyUsage=digitalSignature", days=-1)
        self._issue("foreign_client", "keyUsage=digitalSignature", ca="other_ca")

    def cert(self, name: str) -> str:
        return str(self._folder / f"{name}.pem")

    def key(self, name: str) -> str:
        return str(self._folder / f"{name}.key")

    def both(self, name: str) -> str:
        """Key and certificate in one file, as the broker reads them."""
        return str(self._folder / f"{name}.both")

    def _new_key(self, name: str) -> list[str]:
        return ["-newkey", "rsa:2048", "-nodes", "-keyout", self.key(name)]

    def _issue(self, name: str, extension: str, *, days: int = 2, ca: str = "ca") -> None:
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(extension)
        self._openssl("req", *self._new_key(name), "-out", str(request), "-subj", f"/CN={name}")
        issuer = ["-CA", self.cert(ca), "-CAkey", self.key(ca), "-CAcreateserial"]
        extra = ["-days", str(days), "-extfile", str(extensions), "-out", self.cert(name)]
        self._openssl("x509", "-req", "-in", str(request), *issuer, *extra)
        Path(self.both(name)).write_text(Path(self.key(name)).read_text() + Path(self.cert(name)).read_text())

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class SecureKafka(JavaKafka):
    """One node."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners = dict(zip(PROTOCOLS, free_ports(len(PROTOCOLS)), strict=True))

    def __enter__(self) -> Self:
        super().__enter__()
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        self.set_password(PASSWORD)
        return self

    def address(self, listener: str) -> str:
        return f"127.0.0.1:{self.listeners[listener]}"

    def set_password(self, password: str) -> None:
        """Of USER, for SCRAM; PLAIN keeps PASSWORD."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(USER, info, password.encode())
        _wait(self._admin.alter_user_scram_credentials([change]))

    def allow(self, kind: str, name: str, *operations: str) -> Callable[[], None]:
        """Give USER these rights; returns what takes them back."""
        rights = [self._right(kind, name, operation, AclBinding) for operation in operations]
        _wait(self._admin.create_acls(rights))
        filters = [self._right(kind, name, operation, AclBindingFilter) for operation in operations]
        return lambda: _wait(self._admin.delete_acls(filters))

    @staticmethod
    def _right(kind: str, name: str, operation: str, of: Callable[..., Any]) -> Any:
        resource, pattern = getattr(ResourceType, kind), ResourcePatternType.LITERAL
        user, allowed = f"User:{USER}", AclPermissionType.ALLOW
        return of(resource, name, pattern, user, "*", getattr(AclOperation, operation), allowed)

    def _properties(self, node: int) -> dict[str, object]:
        properties = super()._properties(node)
        certificates = self.certificates = Certificates(self._folder)
        ports = self.listeners.items()
        advertised = {name: self.address(name) for name in PROTOCOLS} | {"LOST": f"{NEVER_EXISTS}:9092"}
        plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        properties["listeners"] = ",".join(
            [str(properties["listeners"]), *(f"{name}://127.0.0.1:{port}" for name, port in ports)]
        )
        properties["advertised.listeners"] = ",".join(
            [str(properties["advertised.listeners"]), *(f"{name}://{told}" for name, told in advertised.items())]
        )
        kinds = [str(properties["listener.security.protocol.map"]), *(f"{n}:{kind}" for n, kind in PROTOCOLS.items())]
        properties["listener.security.protocol.map"] = ",".join(kinds)
        properties |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": certificates.cert("ca"),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "listener.name.sasl.plain.sasl.jaas.config": plain,
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.sasl.scram-sha-256.connections.max.reauth.ms": 2000,
            "listener.name.sasl_tls.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.sasl_tls.scram-sha-256.sasl.jaas.config": scram,
        }
        for name in PROTOCOLS:
            if "SSL" in PROTOCOLS[name]:
                store = f"listener.name.{name.lower()}.ssl.keystore"
                properties[f"{store}.type"] = "PEM"
                properties[f"{store}.location"] = certificates.both(CERTIFICATES.get(name, "server"))
        return properties


def _wait(futures: Any) -> None:
    for future in futures.values() if isinstance(futures, dict) else futures:
        future.result(20)
