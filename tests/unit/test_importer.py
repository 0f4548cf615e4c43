"""What ``module:app`` finds, and what each mistake says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.command import ORDERS, Run, Write, refused, refused_with_the_users_traceback

# -- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["orders:app", "orders", "orders:", "orders.py", "orders.py:app", "./orders.py"])
def test_the_app_is_found_under_each_way_to_name_it(run: Run, write: Write, target: str) -> None:
    write("orders.py", ORDERS)
    ended = run(target)
    assert ended.code == 0, ended.err
    assert ended.app is not None
    assert ended.app.config.group_id == "event-store"


def test_the_current_directory_comes_first(run: Run, write: Write) -> None:
    write("colorsys.py", ORDERS)  # a module of the standard library that nobody has imported
    sys.modules.pop("colorsys", None)
    assert run("colorsys:app").app is not None


def test_without_an_attribute_the_only_app_is_taken_whatever_its_name(run: Run, write: Write) -> None:
    write("orders.py", ORDERS.replace("app", "consumers"))
    assert run("orders").app is not None


def test_one_app_under_two_names_is_one_app(run: Run, write: Write) -> None:
    write("orders.py", ORDERS.replace("app =", "app = second =") + "first = app\ndel app\n")
    assert run("orders").app is not None


def test_without_an_attribute_app_wins_over_other_apps(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "another = App('other')\n")
    ended = run("orders")
    assert ended.app is not None
    assert ended.app.config.group_id == "event-store"


def test_an_app_of_another_framework_named_app_does_not_hide_the_only_one(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "consumers, app = app, object()\n")
    assert run("orders").app is not None


def test_a_factory_is_called(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "def make():\n    return app\n")
    assert run("orders:make()").app is not None


def test_dotted_attributes_work(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "class Box:\n    app = app\n    make = staticmethod(lambda: Box.app)\n")
    assert run("orders:Box.app").app is not None
    assert run("orders:Box.make()").code == 0


def test_a_module_of_a_package_works(run: Run, write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/orders.py", ORDERS)
    assert run("shop.orders:app").app is not None


@pytest.mark.parametrize("target", ["examples/quickstart.py", "examples/quickstart.py:app", "examples/quickstart:app"])
def test_a_file_in_a_folder_works_with_its_neighbours(run: Run, write: Write, target: str) -> None:
    write("examples/quickstart.py", "import neighbour\n" + ORDERS)
    write("examples/neighbour.py", "")
    ended = run(target)
    assert ended.app is not None, ended.err


def test_a_file_outside_of_the_current_directory_works(
    run: Run, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("examples/quickstart.py", ORDERS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(str(file)).app is not None


def test_a_file_of_a_package_is_imported_under_its_full_name(run: Run, write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/orders.py", ORDERS + "from . import handlers\nassert __name__ == 'shop.orders'\n")
    write("shop/handlers.py", "from shop.orders import app\n")
    ended = run("shop/orders.py")
    assert ended.app is not None, ended.err
    assert "orders" not in sys.modules  # a second copy would hold a second App


# -- what each mistake says -------------------------------------------------------------------------------------------


def test_a_module_that_does_not_exist_is_reported_with_the_folder_and_the_nearest_name(
    run: Run, write: Write, tmp_path: Path
) -> None:
    write("orders.py", ORDERS)
    refused(run("ordrs:app"), "no module named 'ordrs'", str(tmp_path), "did you mean orders?", "use: karafka-lite run")


def test_a_missing_module_of_a_package_that_exists_is_named_in_full(run: Run, write: Write) -> None:
    write("shop/__init__.py", "")
    write("shop/orders.py", ORDERS)
    refused(run("shop.ordrs:app"), "no module named 'shop.ordrs'")


@pytest.mark.parametrize("target", ["exmples/quickstart.py", "examples/quickstrt.py", "examples/", "quickstart.py"])
def test_a_file_that_does_not_exist_is_reported(run: Run, write: Write, target: str, tmp_path: Path) -> None:
    write("examples/quickstart.py", ORDERS)
    refused(run(target), "no such file: ", str(tmp_path), "use: karafka-lite run path/to/file.py")


def test_the_nearest_file_is_named_with_its_folder(run: Run, write: Write) -> None:
    write("examples/quickstart.py", ORDERS)
    refused(run("examples/quickstrt.py"), "did you mean examples/quickstart.py?")


@pytest.mark.parametrize("target", ["", ":app", ".orders:app"])
def test_a_target_without_a_module_is_refused(run: Run, target: str) -> None:
    refused(run(target), "does not name a module", "use: karafka-lite run module:app")


def test_an_import_of_the_users_that_is_not_installed_is_shown_from_the_users_file_on(run: Run, write: Write) -> None:
    write("orders.py", "import database\n" + ORDERS)
    write("database.py", "\nimport psycopg_of_nobody\n")
    refused_with_the_users_traceback(
        run("orders:app"), 'orders.py", line 1', 'database.py", line 2', "'psycopg_of_nobody' is not installed for "
    )


def test_an_exception_of_the_users_module_is_shown_from_the_users_file_on(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "{}['nope']\n")
    refused_with_the_users_traceback(
        run("orders"), 'orders.py", line 7', "KeyError: 'nope'", "run the same command again"
    )


def test_a_factory_that_raises_is_shown_from_the_factory_on(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "def make():\n    return 1 / 0\n")
    refused_with_the_users_traceback(run("orders:make()"), "in make", "ZeroDivisionError", "orders:make()")


def test_a_cause_is_shown_as_well(run: Run, write: Write) -> None:
    write("orders.py", "try:\n    {}['nope']\nexcept KeyError as e:\n    raise OSError('settings') from e\n")
    ended = run("orders")
    assert ended.code == 1
    assert ended.err.index("KeyError: 'nope'") < ended.err.index("OSError: settings")
    assert "main.py" not in ended.err
    assert "importer.py" not in ended.err


def test_a_module_that_ends_the_process_does_not_look_like_a_clean_end(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "import sys\nsys.exit(0)\n")
    refused_with_the_users_traceback(run("orders"), 'orders.py", line 8', 'if __name__ == "__main__":')


def test_a_missing_attribute_is_reported_with_the_apps_of_the_module(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "second = App('other')\n")
    refused(
        run("orders:ap"),
        "orders.py has no attribute 'ap'",
        "karafka-lite run orders:app or karafka-lite run orders:second",
    )


@pytest.mark.parametrize("target", ["orders:app", "orders"])
def test_for_a_module_without_any_app_the_message_shows_how_to_create_one(run: Run, write: Write, target: str) -> None:
    write("orders.py", "x = 1\n")
    refused(run(target), "orders.py has no attribute 'app'", 'app = App("my-group")', "karafka-lite run orders:app")


def test_several_apps_and_none_named_app_are_listed(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import App\nfirst, second = App('a'), App('b')\n")
    refused(run("orders"), "several Apps", "karafka-lite run orders:first or karafka-lite run orders:second")


@pytest.mark.parametrize("package", [True, False])
def test_for_a_folder_its_modules_are_listed(run: Run, write: Write, package: bool) -> None:
    write("shop/orders.py", ORDERS)
    if package:
        write("shop/__init__.py", "")
    refused(run("shop"), "use: karafka-lite run shop.orders")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("app = 3", "an object of type int"), ("app = None", "None"), ("class app: ...", "the class app")],
)
def test_an_attribute_that_is_not_an_app_is_reported_with_its_type(
    run: Run, write: Write, text: str, kind: str
) -> None:
    write("orders.py", f"{text}\n")
    refused(run("orders:app"), f"orders:app is {kind}, not an App")
    refused(run("orders"), f"orders:app is {kind}, not an App")


def test_for_a_function_in_a_module_without_an_app_calling_it_is_suggested(run: Run, write: Write) -> None:
    write("orders.py", "def make(): ...\n")
    refused(run("orders:make"), "orders:make is a function", "karafka-lite run 'orders:make()'")


def test_for_a_router_the_app_that_includes_it_is_asked_for(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import Router\n\norders = Router()\n")
    refused(
        run("orders:orders"), "is an object of type Router, not an App; name the App that includes it: ", "app.include"
    )


def test_for_a_handler_the_app_beside_it_is_suggested(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    refused(run("orders:store"), "orders:store is a function", "use: karafka-lite run orders:app")


def test_a_factory_that_returns_something_else_is_reported_with_its_type(run: Run, write: Write) -> None:
    write("orders.py", "def make(): ...\n")
    refused(run("orders:make()"), "orders:make() returned None, not an App", "return app")


def test_a_factory_that_needs_arguments_is_refused(run: Run, write: Write) -> None:
    write("orders.py", "def make(settings): ...\n")
    refused(run("orders:make()"), "make() missing 1 required positional argument", "called without arguments")


def test_calling_an_app_is_refused(run: Run, write: Write) -> None:
    write("orders.py", ORDERS)
    refused(run("orders:app()"), "orders:app is an object of type App", "remove the ()")


@pytest.mark.parametrize("target", ["orders", "jobs"])
def test_a_wrong_decorator_is_reported_with_the_users_line(run: Run, write: Write, target: str) -> None:
    write("orders.py", ORDERS + "@app.topic('clicks')\ndef count(batch): ...\n")
    write("jobs.py", "import orders\n")
    ended = run(target)
    refused(ended, "count")
    line = 7 if sys.version_info >= (3, 11) else 8  # Python 3.10 calls a decorator from the line of the def
    assert ended.err.startswith(f"orders.py:{line}: ")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            "app.topic('t', manual_offset=True)",
            "argument 'manual_offset'; did you mean manual_offsets?",
        ),
        ("app.every(store, 5)", "every() takes 2 positional arguments but 3 were given; its arguments: handler, ms"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_with_the_users_line(
    run: Run, write: Write, call: str, said: str
) -> None:
    write("orders.py", ORDERS + call + "\n")
    ended = run("orders")
    refused(ended, said)
    assert ended.err.startswith("orders.py:7: ")


def test_a_wrong_call_in_a_factory_is_reported_with_the_users_line(run: Run, write: Write) -> None:
    write("orders.py", ORDERS + "def make():\n    app.topic('user_events')(store)\n")
    ended = run("orders:make()")
    refused(ended, "user_events")
    assert ended.err.startswith("orders.py:8: ")


def test_a_wrong_app_is_reported_with_the_users_line(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import App\n\napp = App('')\n")
    ended = run("orders")
    refused(ended, "group_id")
    assert ended.err.startswith("orders.py:3: ")


@pytest.mark.parametrize("target", ["orders", "jobs"])
def test_a_syntax_error_is_reported_with_its_line_and_text(run: Run, write: Write, target: str) -> None:
    write("orders.py", "x = 1\ndef f(:\n    pass\n")
    write("jobs.py", "import orders\n")
    ended = run(target)
    refused(ended, "SyntaxError: ", "def f(:")
    assert ended.err.startswith("orders.py:2: ")


def test_a_syntax_error_that_no_file_has_is_shown_from_the_users_file_on(run: Run, write: Write) -> None:
    write("orders.py", "eval('1 +')\n")
    ended = run("orders")
    assert ended.code == 1
    assert 'orders.py", line 1' in ended.err
    assert "SyntaxError" in ended.err
    assert "main.py" not in ended.err
    assert "importer.py" not in ended.err


def test_a_file_that_is_no_text_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_bytes(b"x = 1\n\x00\xff")
    refused(run("orders"), "orders")


def test_for_an_app_without_topics_the_message_shows_how_to_register_a_handler(run: Run, write: Write) -> None:
    write("orders.py", "from karafka_lite import App\napp = App('event-store')\n")
    refused(run("orders:app"), "the App in orders:app has no topics", "@app.topic(", "def handle(batch, ctx)")


@pytest.mark.parametrize("target", ["argparse:app", "argparse.py"])
def test_a_file_whose_name_is_taken_is_refused(run: Run, write: Write, target: str) -> None:
    write("argparse.py", ORDERS)
    refused(run(target), "cannot import argparse.py", "already taken by", "rename it, for example to my_argparse")


def test_ctrl_c_during_the_import_ends_quietly(run: Run, write: Write) -> None:
    write("orders.py", "raise KeyboardInterrupt\n")
    ended = run("orders")
    assert ended.code == 1
    assert ended.err == ""
