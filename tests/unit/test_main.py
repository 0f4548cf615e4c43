"""``karafka-lite``: usage, help, and what a shell sees of it."""

from __future__ import annotations

import platform
import re
import shlex
from pathlib import Path

import pytest
from support.command import Run, process, refused

import karafka_lite
from karafka_lite.cli import main as cli

COMMANDS = ["run", "routes", "lag", "reset", "produce", "read", "redrive", "broker"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: module:app"),
        (["orders", "--concurrency", "five"], "invalid int value: 'five'"),
        (["orders", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["orders", "--brokr", "kafka:9092"], "unrecognized arguments: --brokr kafka:9092; did you mean --broker?"),
        (["orders", "--brok", "kafka:9092"], "unrecognized arguments: --brok kafka:9092; did you mean --broker?"),
        (["orders", "--until_end=1"], "unrecognized arguments: --until_end=1; did you mean --until-end?"),
        (["orders", "--xyz"], "unrecognized arguments: --xyz\n"),
    ],
)
def test_a_usage_error_exits_1_and_shows_an_example_in_three_lines(run: Run, argv: list[str], words: str) -> None:
    ended = run(*argv)
    refused(ended, words, "for example: karafka-lite run module:app", "karafka-lite run --help")
    assert len(ended.err.splitlines()) == 3


@pytest.mark.parametrize("argv", [["orders:app"], ["--nope"]])
def test_without_a_known_command_run_is_suggested(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 1
    assert "for example: karafka-lite run module:app" in capsys.readouterr().err


def test_without_any_argument_it_prints_its_help_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    alone = capsys.readouterr()
    assert alone == (help_of(capsys), "")
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +\w", alone.out, re.MULTILINE)


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_a_help_fits_a_terminal_of_80_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in help_of(capsys, *command).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_exit_codes_and_groups_of_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, command)
    assert re.search(rf"^examples:\n  karafka-lite {command} ?", text, re.MULTILINE)
    assert re.search(r"^exit codes:\n  0  \w", text, re.MULTILINE)
    assert re.search(r"^logging:\n  --log-level LEVEL ", text, re.MULTILINE)


def test_the_examples_in_a_help_are_commands_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    texts = "".join(help_of(capsys, command) for command in COMMANDS)
    examples = re.findall(r"^  (?:.*\| )?karafka-lite (.+?)(?:  .*)?$", texts, re.MULTILINE)
    assert len(examples) >= 32
    for example in examples:
        cli._parser().parse_args(shlex.split(example))


def test_help_of_produce_says_what_a_line_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert "A line ends with \\n or \\r\\n. Blank lines are skipped; with --text" in help_of(capsys, "produce")


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


# -- as a process -----------------------------------------------------------------------------------------------------


def test_the_version_goes_to_standard_output(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"karafka-lite {karafka_lite.__version__}\n", "")


def test_verbose_prints_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"karafka-lite {karafka_lite.__version__}"
    assert f"CPython {platform.python_version()}" in lines
    assert any(line.startswith("kafka-python 3.0.") for line in lines)
    assert lines[-1].startswith("reader: ")


def test_the_version_loads_no_rich(tmp_path: Path) -> None:
    program = (
        "import sys, karafka_lite.cli.main\n"
        "try: karafka_lite.cli.main.main(['--version'])\n"
        "finally: assert 'rich' not in sys.modules\n"
    )
    done = process("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_in_a_process_exits_1_without_a_traceback(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "run", "ordrs:app", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("karafka-lite: no module named 'ordrs'")
    assert "Traceback" not in done.stderr


def test_a_usage_error_in_a_process_exits_1(tmp_path: Path) -> None:
    done = process("-m", "karafka_lite", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "karafka-lite run module:app" in done.stderr


def test_a_help_imports_no_kafka_python_and_the_top_one_nothing_of_an_app(tmp_path: Path) -> None:
    for argv, foreign in (([], "karafka_lite.app"), (["run"], "kafka"), (["produce"], "kafka"), (["broker"], "kafka")):
        program = (
            f"import sys\nfrom karafka_lite.cli.main import main\n"
            f"try: main([*{argv}, '--help'])\nfinally: assert {foreign!r} not in sys.modules\n"
        )
        done = process("-c", program, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), argv
