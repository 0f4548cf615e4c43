"""A module's tests are found by its name.

``core/marks.py`` has ``test_marks.py``, in whichever folder of tests/; where two modules share a name, the folder goes
before it: ``cli/produce.py`` has ``test_cli_produce.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "karafka_lite"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

# Why a module has no file of its name, and where its tests are.
ELSEWHERE = {
    "version.py": "house/test_metadata.py",
    # Parts of a group and of an ownership, which are tested as wholes.
    "core/commits.py": "unit/test_group.py",
    "core/exact.py": "unit/test_units.py",
    # Its answers are those of observers, which have their tests; that they are of the run, a running App shows.
    "watching.py": "kafka/test_operations.py",
    "__main__.py": "unit/test_main.py",
    # The parts of the embedded broker are tested as its clients meet them: by the protocol.
    "broker/embedded.py": "broker/test_embedded_clients.py",
    "broker/groups.py": "broker/test_embedded_protocol.py",
    "broker/log.py": "broker/test_embedded_protocol.py",
    "broker/topics.py": "broker/test_embedded_protocol.py",
    "broker/transactions.py": "broker/test_embedded_protocol.py",
    "broker/wire.py": "broker/test_embedded_robustness.py",
    # Options that the commands share are tested with each command.
    "cli/options.py": "unit/test_main.py",
    # Of what it keeps, the parts are tested; that it gets all events, and what becomes of them, each running App shows.
    "observers/observed.py": "kafka/test_operations.py",
    # The two sides of one socket.
    "cli/child.py": "kafka/test_children.py",
    # It is there for what sends.
    "cli/interrupt.py": "unit/test_feed.py",
    # What is promised on an event loop, a running App shows.
    "loops.py": "kafka/test_async.py",
    "staff.py": "kafka/test_async.py",
    # The one call of user code, and which Apps are twins, decorators and Apps show.
    "route.py": "unit/test_routing.py",
    "twins.py": "unit/test_app.py",
    # What it sends, and what it does with an answer, is seen by a broker only.
    "client/producer.py": "kafka/test_sending.py",
    # Why a broker refuses a client, a real one says.
    "client/causes.py": "kafka/test_security.py",
    "client/listeners.py": "kafka/test_security.py",
    "client/refusals.py": "kafka/test_security.py",
    # What a broker does not answer, or answers with errors for ever, and what is said about it.
    "client/leaving.py": "kafka/test_silence.py",
    "client/stalls.py": "kafka/test_silence.py",
    "client/trouble.py": "kafka/test_silence.py",
    # The producer of an app, that a dead one is replaced.
    "client/outbox.py": "kafka/test_sending.py",
    # What it asks of a cluster, a drain to the end of the topics shows.
    "client/admin.py": "kafka/test_drain.py",
    # The command line shows it, too.
    "observers/banner.py": "unit/test_console.py",
    # Of messages for nobody, who reads them is the command.
    "client/browser.py": "kafka/test_read.py",
    # What a send takes, the tests of the context say.
    "addressing.py": "unit/test_context.py",
    # What decorators refuse, the tests of the decorators say.
    "checks.py": "unit/test_routing.py",
    # Values only; the group that gives them is tested.
    "core/answers.py": "unit/test_group.py",
    # Where a partition goes on whose position is gone, the group finds out.
    "core/strays.py": "unit/test_group.py",
    # Types only: mypy compares them with the clients.
    "client/protocol.py": "house/test_lint.py",
    # The parts of karafka_lite.testing, as a user's tests meet them.
    "testing/client.py": "unit/test_testing.py",
    "testing/cluster.py": "unit/test_testing.py",
    "testing/loop.py": "unit/test_testing.py",
    "testing/member.py": "unit/test_testing.py",
    "testing/plain.py": "unit/test_testing.py",
}


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_its_file_of_tests(module: str) -> None:
    folder, name = Path(module).parent.name, Path(module).stem
    named = [path for own in (f"test_{name}.py", f"test_{folder}_{name}.py") for path in ROOT.glob(f"tests/*/{own}")]
    if module in ELSEWHERE:
        assert (ROOT / "tests" / ELSEWHERE[module]).exists()
    else:
        assert named, f"no tests/*/test_{name}.py; write one, or say in ELSEWHERE where its tests are, and why"


def test_exceptions_are_of_modules_that_exist() -> None:
    assert set(ELSEWHERE) <= set(MODULES)


def test_no_two_files_of_tests_share_a_name_so_that_all_can_be_imported() -> None:
    names = [path.name for path in ROOT.glob("tests/*/test_*.py")]
    assert sorted(names) == sorted(set(names))
