"""An image of Kafka for the tests of the docker broker.

Apache's own where it is there or can be pulled. Elsewhere one is made, under another name, of this machine's Java and
the jars that the other tests run as well: nothing in it but those, the C library, and a shell whose start script
makes server.properties of the variables, as Apache's image does.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from karafka_lite.broker.docker import IMAGE
from support.kafka_server import kafka_home

NAME = "karafka-lite-test/kafka"

# \\L: lower case up to the next "="; the values stay.
START = r"""#!/bin/sh
env | sed -n '/^KAFKA_/{s/^KAFKA_\([^=]*\)=/\L\1=/; :more; s/^\([^=_]*\)_\([^=]*=\)/\1.\2/; t more; p}' \
    >/opt/kafka/server.properties
kafka() { exec /opt/java/bin/java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp '/opt/kafka/libs/*' "$@"; }
(kafka kafka.tools.StorageTool format --ignore-formatted --cluster-id=5L6g3nShT-eMCtK--X86sw \
    --config=/opt/kafka/server.properties) && kafka kafka.Kafka /opt/kafka/server.properties
"""

WITHOUT = {"jmods", "include", "man", "demo", "src.zip", "ct.sym", "legal"}  # of a JDK; the half of it


@contextmanager
def kafka_image() -> Iterator[str]:
    """The name of an image that runs; one that was made here is removed behind the block."""
    with _client() as client:
        if _has_apaches(client):
            yield IMAGE
            return
        image = _made(client)
        try:
            yield image
        finally:
            client.images.remove(image, force=True)


@contextmanager
def _client() -> Iterator[Any]:
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()


def _has_apaches(client: Any) -> bool:
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(IMAGE)
        except docker.errors.APIError:  # no registry within reach
            return False
    return True


def _made(client: Any) -> str:
    java = Path(shutil.which("java") or "/nowhere").resolve().parents[1]
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
            _add_tree(tar, java, "opt/java")
            _add_tree(tar, kafka_home() / "libs", "opt/kafka/libs")
            programs = {name: Path(shutil.which(name) or name).resolve() for name in ("sh", "env", "sed")}
            for name, program in programs.items():
                tar.add(program, f"bin/{name}")
            libraries = [*programs.values(), java / "bin" / "java", *java.glob("lib/**/*.so")]
            for library in _needed_by(libraries):
                tar.add(library, library.lstrip("/"))
            _add_text(tar, "start", START, 0o755)
            _add_text(tar, "tmp/.keep", "", 0o644)
        file.seek(0)
        client.api.import_image_from_data(file, repository=NAME, tag="made-here", changes=['CMD ["/start"]'])
    return f"{NAME}:made-here"


def _add_tree(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = set(folders) - WITHOUT
        for path in (Path(place, file) for file in set(files) - WITHOUT):
            if path.exists():  # Debian leaves links to files of packages that are not installed
                tar.add(path, f"{name}/{path.relative_to(folder)}")


def _add_text(tar: tarfile.TarFile, name: str, text: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text.encode()), mode
    tar.addfile(info, io.BytesIO(text.encode()))


def _needed_by(binaries: Iterable[Path]) -> set[str]:
    """The files of the shared libraries, the loader among them; "not found" ones are for windows and sounds."""
    listed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout
    return set(re.findall(r"(?:=> |^\t)(/(?!opt/|usr/lib/jvm/)\S+) \(0x", listed, re.MULTILINE))
