"""Handlers under test without a broker, threads or waiting: what is decided, the product's own rules decide.

``TestClient`` is for a handler with its app, ``context`` for one as a plain function.
"""

from karafka_lite.testing.client import Run, TestClient
from karafka_lite.testing.plain import AsyncRecordingContext, RecordingContext, context

__all__ = ["AsyncRecordingContext", "RecordingContext", "Run", "TestClient", "context"]
