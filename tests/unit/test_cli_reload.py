"""``run --reload``: when the App is started again, and what counts as a change. No process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import Run, Write, refused
from support.observer import wait_until

from karafka_lite.cli.reload import Reloader, Watcher


class FakeChild:
    def __init__(self, again: bool, fed: bool) -> None:
        self.again, self.told_fed = again, fed
        self.fed, self.stopped = False, 0
        self.code: int | None = None

    def ended(self) -> Any:
        return self.code

    def stop(self) -> None:
        self.stopped += 1


class Scene:
    def __init__(self) -> None:
        self.names, self.starts, self.bell = set[str](), list[FakeChild](), SimpleNamespace(stops=0)
        watcher: Any = SimpleNamespace(changed=self.changed)
        self.reloader = Reloader(self.start, watcher, self.bell)  # type: ignore[arg-type]
        self.step()

    def start(self, again: bool, fed: bool) -> Any:
        self.starts.append(FakeChild(again, fed))
        return self.starts[-1]

    def changed(self) -> set[str]:
        names, self.names = self.names, set()
        return names

    def step(self, *names: str, code: int | None = None) -> float | None:
        self.names |= set(names)
        if self.starts:
            self.starts[-1].code = code
        return self.reloader.step()


def test_a_change_stops_the_app_once_and_starts_it_when_it_has_ended() -> None:
    scene = Scene()
    scene.step("a.py")
    scene.step("b.py")
    assert [child.stopped for child in scene.starts] == [1]
    scene.step(code=0)
    assert [(child.again, child.stopped) for child in scene.starts] == [(False, 1), (True, 0)]


def test_what_ends_by_itself_waits_for_a_change_and_files_are_sent_once() -> None:
    scene = Scene()
    scene.step(code=1)
    assert scene.step() is not None
    assert len(scene.starts) == 1
    scene.step("a.py")
    assert not scene.starts[-1].told_fed
    scene.starts[-1].fed = True
    scene.step(code=1)
    scene.step("a.py")
    assert scene.starts[-1].told_fed
    assert scene.step(code=3) is not None, "a broker that went away comes back"
    assert scene.reloader.child is None


def test_without_a_broker_the_first_start_ends_with_3() -> None:
    scene = Scene()
    assert (scene.step(code=3), scene.reloader.code) == (None, 3)


@pytest.mark.parametrize(("code", "exit_code"), [(0, 0), (2, 2), (-signal.SIGTERM, 0)])
def test_a_signal_stops_it_and_its_exit_code_counts(code: int, exit_code: int) -> None:
    scene = Scene()
    scene.bell.stops = 1
    assert scene.step("a.py") is not None
    assert scene.starts[0].stopped == 1
    assert (scene.step(code=code), scene.reloader.code, len(scene.starts)) == (None, exit_code, 1)


def test_python_files_and_those_that_are_named_count_and_nothing_else(tmp_path: Path) -> None:
    config, rings = tmp_path / "conf" / "kafka.toml", list[int]()
    config.parent.mkdir()
    (tmp_path / "code" / "shop").mkdir(parents=True)
    seen: set[str] = set()
    watcher = Watcher([str(tmp_path / "code")], [str(config)], lambda: rings.append(1))
    try:
        for name in ("code/notes.txt", "conf/other.py~", "conf/kafka.toml", "code/shop/orders.py"):
            (tmp_path / name).write_text("x")

        def looked() -> bool:
            (tmp_path / "code" / "shop" / "orders.py").write_text("y")  # until the watch has begun
            config.write_text("z")
            seen.update(Path(name).name for name in watcher.changed())
            return len(seen) >= 2

        wait_until(looked, message="changes")
    finally:
        watcher.close()
    assert seen == {"kafka.toml", "orders.py"}
    assert rings


def test_where_watchfiles_is_missing_it_says_what_to_install(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("orders.py", "")
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    refused(run("orders", "--reload"), "karafka-lite: --reload requires: pip install 'karafka-lite[reload]'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reload", "--processes", "2"], "--reload runs one process; leave out --processes"),
        (["--until-end", "--processes", "2"], "--until-end runs one process; leave out --processes"),
        (["--live", "--processes", "2"], "--live shows one process; leave out --processes"),
        (["--processes", "0"], "--processes: must be an integer ≥ 1, got '0'"),
        (["--replication-factor", "3"], "--replication-factor requires --create-topics"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    run: Run, write: Write, options: list[str], words: str
) -> None:
    write("orders.py", "")
    refused(run("orders", *options), words)
