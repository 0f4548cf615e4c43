"""Why a connection to a broker was not made: in one line that names the broker, the cause and the setting."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import kafka.errors

from karafka_lite.client.listeners import Listener, is_alert

EXPIRED, NOT_YET_VALID, OTHER_HOST = (10,), (9,), (62, 64)  # of OpenSSL's verify codes
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
DISCONNECTED = "socket disconnected"  # as kafka-python has it
REFUSED = (kafka.errors.SaslAuthenticationFailedError, kafka.errors.AuthorizationError)
WITHOUT_KAFKA = "karafka-lite run module:app --broker embedded"  # how to try it
CREDENTIALS = {
    "GSSAPI": "the Kerberos ticket and sasl_kerberos_service_name",
    "OAUTHBEARER": "sasl_oauth_token_provider",
    "AWS_MSK_IAM": "the credentials of AWS",
}


class Cause(NamedTuple):
    """``final``: trying again cannot help. ``refused``: and may lock the account."""

    text: str
    final: bool = False
    refused: bool = False


class NotReachedError(kafka.errors.KafkaConnectionError):  # type: ignore[misc]
    """There is no connection to the host."""


NO_ANSWER = (kafka.errors.KafkaTimeoutError, kafka.errors.RequestTimedOutError)
NOT_REACHED = (NotReachedError, *NO_ANSWER)


def explain(error: BaseException, broker: str, settings: Mapping[str, Any], listener: Listener | None = None) -> Cause:
    """Why ``broker`` could not be connected to; ``listener``: what it has said of itself since."""
    protocol, mechanism = settings["security_protocol"], settings["sasl_mechanism"]
    if isinstance(error, REFUSED):
        check = CREDENTIALS.get(mechanism, "sasl_plain_username and sasl_plain_password")
        return Cause(f"{broker} refuses the credentials ({mechanism}: {said(error)}); check {check}", True, True)
    if isinstance(error, kafka.errors.UnsupportedSaslMechanismError):
        offered = f"; it offers {', '.join(listener.mechanisms)}" if listener and listener.mechanisms else ""
        return Cause(f"{broker} does not offer sasl_mechanism={mechanism!r}{offered}", True)
    if isinstance(error, kafka.errors.IllegalSaslStateError):
        text = f"{broker} does not authenticate; use security_protocol={_protocol('SSL' in protocol, False)!r}"
        return Cause(f"{text}, without sasl_*", True)
    if isinstance(error, kafka.errors.KafkaConfigurationError):
        return Cause(f"{broker}: {said(error)}", True)
    if isinstance(error, kafka.errors.IncompatibleBrokerVersion):
        return Cause(f"{broker} is no broker for clients, perhaps a controller; use a broker's address", True)
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return Cause(_untrusted(each, broker, settings), True)
        if isinstance(each, ssl.SSLError) and is_alert(each):
            return _alert(each, broker, settings)
    if listener is not None:
        if listener.error is not None:
            return _alert(listener.error, broker, settings)
        if listener.tls is not ("SSL" in protocol):
            speaks = "TLS, not plain text" if listener.tls else "plain text, not TLS"
            sasl = "SASL" in protocol if listener.mechanisms is None else bool(listener.mechanisms)
            text = f"{broker} speaks {speaks}; use security_protocol={_protocol(listener.tls, sasl)!r}"
            return Cause(f"{text} instead of {protocol!r}", True)
        if listener.mechanisms and "SASL" not in protocol:
            text = f"{broker} asks for authentication ({', '.join(listener.mechanisms)}); use security_protocol="
            return Cause(f"{text}{_protocol(listener.tls, True)!r}, with sasl_mechanism and credentials", True)
    if isinstance(error, NOT_REACHED):
        return Cause(
            f"{broker} cannot be reached ({'no answer in time' if isinstance(error, NO_ANSWER) else said(error)})"
        )
    closed = any(isinstance(each, ConnectionError) for each in _chain(error))
    return Cause(f"{broker} hangs up ({DISCONNECTED if closed else said(error)})")


def said(error: BaseException) -> str:
    """The text of an error without kafka-python's own prefix."""
    text = " ".join(str(part) for part in error.args if part) or type(error).__name__
    return text.removeprefix("SaslAuthenticationFailedError: ")


def _protocol(tls: bool, sasl: bool) -> str:
    return ("SASL_SSL" if tls else "SASL_PLAINTEXT") if sasl else ("SSL" if tls else "PLAINTEXT")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        error = inner or error.__cause__


def _untrusted(error: ssl.SSLCertVerificationError, broker: str, settings: Mapping[str, Any]) -> str:
    if error.verify_code in EXPIRED + NOT_YET_VALID:
        when = "has expired" if error.verify_code in EXPIRED else "is not valid yet"
        return f"the certificate of {broker} {when}; it has to be renewed there (or the clock here is wrong)"
    if error.verify_code in OTHER_HOST:
        text = f"the certificate of {broker} is for another host ({error.verify_message}); use a name that is in it"
        return f"{text}, or ssl_check_hostname=False"
    file = settings["ssl_cafile"]
    known = f"ssl_cafile={file!r}" if file else "this machine's CAs (no ssl_cafile is given)"
    return f"the certificate of {broker} is not from a CA in {known} ({error.verify_message}); use ssl_cafile=its CA"


def _alert(error: ssl.SSLError, broker: str, settings: Mapping[str, Any]) -> Cause:
    reason = (error.reason or "").replace("_", " ").lower()
    if not settings["ssl_certfile"] and settings["ssl_context"] is None:
        text = f"{broker} asks for a client certificate ({reason}); set ssl_certfile and ssl_keyfile"
    else:
        text = f"{broker} refuses our client certificate ({reason}); check ssl_certfile and ssl_keyfile"
    return Cause(text, True)
