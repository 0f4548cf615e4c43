"""Finds the App that ``module:app`` names.

Every mistake is an ``ImportFailed`` whose text says what to do. A traceback is shown only for exceptions of the user's
own code, starting at the user's first frame.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
import os
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from types import FrameType, ModuleType, TracebackType

from karafka_lite.app import App
from karafka_lite.errors import ConfigurationError, KarafkaLiteError
from karafka_lite.routing import Router

_WRONG_CALL = re.compile(r"(?:App|Router)\.(\w+)\(\) (.*)")  # as Python tells it
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


class ImportFailed(KarafkaLiteError):
    """``module:app`` could not be loaded; the text is complete and is printed as it is."""

    is_complete = True


def load_app(target: str) -> App:
    """Import the App that ``target`` names, with at least one route.

    Args:
        target: ``module``, ``module:attribute`` or ``module:factory()``, where a module may also be a file's path.

    Raises:
        ImportFailed: the App was not found, could not be imported or created, or has no route.
    """
    location, _, attribute = target.partition(":")
    name = _put_on_path(location)
    try:
        module = _import(name)
        app = _look_up(module, attribute, location) if attribute else _default_app(module, location)
    except (ImportFailed, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - also SystemExit: a process that never consumed must not exit with 0
        raise _explain(error, target) from None
    if not any(app.groups.values()):
        raise _failed(
            f"the App in {target} has no topics; register a handler:\n"
            f'    @app.topic("my_topic")\n'
            f"    def handle(batch, ctx): ...\n"
            f"(if the handlers are in another module, {_file_of(module)} must import it)"
        )
    return app


def _failed(message: str) -> ImportFailed:
    return ImportFailed(f"karafka-lite: {message}")


def _put_on_path(location: str) -> str:
    """Make a file, or a module of the current directory, importable; returns the module's name."""
    sys.path.insert(0, os.getcwd())  # not "": the user's code may change the directory
    if not (location.endswith(".py") or "/" in location):
        if not location or location.startswith("."):
            raise _failed(f"{location or ':'!r} does not name a module; use: karafka-lite run module:app")
        return location
    file = Path(os.path.abspath(location).removesuffix(".py") + ".py")
    if not file.is_file():
        raise _failed(
            f"no such file: {_relative(file)} (current directory: {os.getcwd()}){_did_you_mean(file)}; "
            f"use: karafka-lite run path/to/file.py, or karafka-lite run module:app"
        )
    # A file of a package is imported under its full name: as a second, bare module it would make a second App, and
    # its relative imports would fail.
    folder, parts = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        folder, parts = folder.parent, [folder.name, *parts]
    sys.path.insert(0, str(folder))
    return ".".join(parts).removesuffix(".__init__")


def _import(name: str) -> ModuleType:
    folder = Path(sys.path[0])
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if _users_frames(error):  # the module exists, something that it imports does not
            raise
        raise _failed(
            f"no module named {error.name!r} in {folder}, nor is one installed{_did_you_mean(folder / name)}; "
            f"change to the directory that contains it, or use: karafka-lite run path/to/file.py"
        ) from None
    # queue.py, json.py, kafka.py …: a module of that name is already imported and silently hides the user's file.
    inside = folder.joinpath(*name.split("."))
    files = [file for file in (inside / "__init__.py", inside.with_name(f"{inside.name}.py")) if file.is_file()]
    loaded = getattr(module, "__file__", None)
    if files and os.path.realpath(loaded or "") not in map(os.path.realpath, files):
        raise _failed(
            f"cannot import {_relative(files[0])}: the name {name!r} is already taken by {loaded or 'Python itself'}; "
            f"rename it, for example to my_{inside.name}"
        )
    return module


def _look_up(module: ModuleType, attribute: str, location: str) -> App:
    calls, path = attribute.endswith("()"), attribute.removesuffix("()")
    try:
        found: object = operator.attrgetter(path)(module)
    except AttributeError:
        raise _failed(f"{_file_of(module)} has no attribute {path!r}; {_candidates(module, location)}") from None
    if calls:
        if not callable(found):
            raise _failed(f"{location}:{path} is {_kind(found)} and cannot be called; remove the ()")
        found = found()
    if isinstance(found, App):
        return found
    if calls:
        raise _failed(f"{location}:{attribute} returned {_kind(found)}, not an App; end the function with: return app")
    if isinstance(found, Router):
        hint = f"name the App that includes it: app.include({path})"
    elif inspect.isroutine(found) and not _apps(module):
        hint = f"if it creates the App, use: karafka-lite run '{location}:{path}()'"
    else:
        hint = _candidates(module, location)
    raise _failed(f"{location}:{path} is {_kind(found)}, not an App; {hint}")


def _default_app(module: ModuleType, location: str) -> App:
    apps = _apps(module)
    if "app" in apps or not apps:
        return _look_up(module, "app", location)  # without any App, its error says what is missing
    if len({id(app) for app in apps.values()}) > 1:  # one App may have two names
        raise _failed(f"{_file_of(module)} has several Apps; {_candidates(module, location)}")
    return next(iter(apps.values()))


def _apps(module: ModuleType) -> dict[str, App]:
    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def _candidates(module: ModuleType, location: str) -> str:
    targets = [f"{location}:{name}" for name in _apps(module)]
    if not targets and hasattr(module, "__path__"):  # a package: the App is in one of its modules
        targets = [f"{module.__name__}.{inner.name}" for inner in pkgutil.iter_modules(module.__path__)][:5]
    if not targets:
        return f'it has no App; create one with app = App("my-group"), then use: karafka-lite run {location}:app'
    return "use: " + " or ".join(f"karafka-lite run {target}" for target in targets)


def _explain(error: BaseException, target: str) -> ImportFailed:
    frames = _users_frames(error)
    if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename):
        text = (error.text or "").strip()
        line = f"{_relative(error.filename)}:{error.lineno}"
        return ImportFailed(f"{line}: {type(error).__name__}: {error.msg}\n    {text}")
    if not frames:
        hint = "; the function is called without arguments" if target.endswith("()") else ""
        return _failed(f"cannot load {target}: {type(error).__name__}: {error}{hint}")
    if isinstance(error, ConfigurationError):
        ours = [_package(step.tb_frame) == "karafka_lite" for step in frames]
        step = frames[ours.index(True) - 1 if True in ours else -1]  # where the user's code called ours
        return ImportFailed(f"{_place(step)}: {error}")
    if wrong := _wrong_call(error):
        return ImportFailed(f"{_place(frames[-1])}: {wrong}")
    if isinstance(error, ModuleNotFoundError):
        hint = f"{error.name!r} is not installed for {sys.executable}; install it there, or fix the import"
    elif isinstance(error, SystemExit):
        hint = 'the module exits when it is imported; move the code that does under: if __name__ == "__main__":'
    else:
        hint = "fix the error shown above, then run the same command again"
    trace = "".join(traceback.format_exception(type(error), error, frames[0]))
    return _failed(f"cannot load {target}, its code raised an exception\n\n{trace}\n{hint}")


def _wrong_call(error: BaseException) -> str:
    """What Python says of a call of ours, ``@app.topic(…)``, whose arguments do not fit; "": it is another error."""
    said = _WRONG_CALL.fullmatch(str(error)) if isinstance(error, TypeError) else None
    if said is None:
        return ""
    name, reason = said.groups()
    names = [*inspect.signature(getattr(App, name)).parameters][1:]  # without self
    unknown = _UNKNOWN.search(reason)
    near = difflib.get_close_matches(unknown[1], names) if unknown else []
    hint = f"did you mean {' or '.join(near)}?" if near else f"its arguments: {', '.join(names)}"
    return f"{name}() {reason}; {hint}"


def _place(step: TracebackType) -> str:
    return f"{_relative(step.tb_frame.f_code.co_filename)}:{step.tb_lineno}"


def _users_frames(error: BaseException) -> list[TracebackType]:
    """The steps of the traceback from the first one that is neither ours nor the import machinery's."""
    steps: list[TracebackType] = []
    step = error.__traceback__
    while step:
        if steps or _package(step.tb_frame) not in ("karafka_lite", "importlib"):
            steps.append(step)
        step = step.tb_next
    return steps


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _did_you_mean(path: Path) -> str:
    name, suffix = path.name.removesuffix(".py"), ".py" if path.suffix == ".py" else ""
    near = difflib.get_close_matches(name, [file.stem for file in path.parent.glob("*.py")], n=1)
    return f" (did you mean {_relative(path.with_name(near[0] + suffix))}?)" if near else ""


def _file_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return _relative(file) if file else f"{module.__name__} (a directory)"


def _kind(found: object) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}"
    if inspect.isroutine(found):
        return "a function"
    return "None" if found is None else f"an object of type {type(found).__name__}"


def _relative(path: str | Path) -> str:
    """Relative to the current directory if the path is inside it."""
    try:
        return str(Path(path).relative_to(os.getcwd()))
    except ValueError:
        return str(path)
