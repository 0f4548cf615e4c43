"""The App that ``module:app`` names.

Every mistake is a ``Refused``, whose text says what to type next. A traceback is shown only where the user's own code
raised, from the user's first frame on.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
import os
import pkgutil
import sys
import traceback
from pathlib import Path
from types import FrameType, ModuleType, TracebackType

from karafka_lite.app import App
from karafka_lite.errors import ConfigurationError


class Refused(Exception):
    """A mistake of the user's; its text is complete and is printed as it is."""


def _refused(message: str) -> Refused:
    return Refused(f"karafka-lite: {message}")


def load(target: str) -> App:
    """The App that ``module:app`` names, with at least one route.

    Raises:
        Refused: it cannot be found, imported or made, or it has no route.
    """
    typed, _, attribute = target.partition(":")
    name = _put_on_path(typed)
    try:
        module = _import(name)
        app = _look_up(module, attribute, typed) if attribute else _default_app(module, typed)
    except (Refused, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit as well: a process that never consumed must not end with 0
        raise _explained(error, target) from None
    if not any(app.groups.values()):
        raise _refused(
            f"the App of {target} has no topics: decorate a function\n"
            f'    @app.topic("my_topic")\n'
            f"    def handle(batch, ctx): ...\n"
            f"(if the functions stand in another module, {_place(module)} has to import it)"
        )
    return app


def _put_on_path(typed: str) -> str:
    """Make what was typed importable, as a file or as a module of the current directory; returns the module's name."""
    sys.path.insert(0, os.getcwd())  # not "": the user's code may change the directory
    if not (typed.endswith(".py") or "/" in typed):
        if not typed or typed.startswith("."):
            raise _refused(f"{typed or ':'!r} names no module; type: karafka-lite run module:app")
        return typed
    file = Path(os.path.abspath(typed).removesuffix(".py") + ".py")
    if not file.is_file():
        raise _refused(
            f"there is no file {_shown(file)} (seen from {os.getcwd()}){_did_you_mean(file)}; "
            f"type: karafka-lite run path/to/file.py, or karafka-lite run module:app"
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
        raise _refused(
            f"there is no module {error.name!r} (looked in {folder}, then where Python finds packages)"
            f"{_did_you_mean(folder / name)}; go to the folder that holds it, or type: karafka-lite run path/to/file.py"
        ) from None
    # queue.py, json.py, kafka.py …: a name that is imported already hides the user's file, without a word from Python.
    inside = folder.joinpath(*name.split("."))
    files = [file for file in (inside / "__init__.py", inside.with_name(f"{inside.name}.py")) if file.is_file()]
    loaded = getattr(module, "__file__", None)
    if files and os.path.realpath(loaded or "") not in map(os.path.realpath, files):
        raise _refused(
            f"{_shown(files[0])} cannot be imported: the name {name!r} belongs to {loaded or 'Python itself'}; "
            f"rename it, for example to my_{inside.name}, and type the new name"
        )
    return module


def _look_up(module: ModuleType, attribute: str, typed: str) -> App:
    calls, path = attribute.endswith("()"), attribute.removesuffix("()")
    try:
        found: object = operator.attrgetter(path)(module)
    except AttributeError:
        raise _refused(f"{_place(module)} has no {path!r}; {_candidates(module, typed)}") from None
    if calls:
        if not callable(found):
            raise _refused(f"{typed}:{path} is {_kind(found)}, which cannot be called; leave out the ()")
        found = found()
    if isinstance(found, App):
        return found
    if calls:
        raise _refused(f"{typed}:{attribute} returned {_kind(found)}, not an App; end the function with: return app")
    if inspect.isroutine(found) and not _apps(module):
        hint = f"if it makes the App, type: karafka-lite run '{typed}:{path}()'"
    else:
        hint = _candidates(module, typed)
    raise _refused(f"{typed}:{path} is {_kind(found)}, not an App; {hint}")


def _default_app(module: ModuleType, typed: str) -> App:
    apps = _apps(module)
    if "app" in apps or not apps:
        return _look_up(module, "app", typed)  # without any App it says what is missing
    if len({id(app) for app in apps.values()}) > 1:  # one App may have two names
        raise _refused(f"{_place(module)} has several Apps; {_candidates(module, typed)}")
    return next(iter(apps.values()))


def _apps(module: ModuleType) -> dict[str, App]:
    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def _candidates(module: ModuleType, typed: str) -> str:
    places = [f"{typed}:{name}" for name in _apps(module)]
    if not places and hasattr(module, "__path__"):  # a package: its App stands in one of its modules
        places = [f"{module.__name__}.{inner.name}" for inner in pkgutil.iter_modules(module.__path__)][:5]
    if not places:
        return f'there is no App in it: make one with app = App("my-group"), then type: karafka-lite run {typed}:app'
    return "type: " + " or ".join(f"karafka-lite run {place}" for place in places)


def _explained(error: BaseException, target: str) -> Refused:
    frames = _users_frames(error)
    if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename):
        text = (error.text or "").strip()
        return Refused(f"{_shown(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}\n    {text}")
    if not frames:
        hint = "; the function is called without arguments" if target.endswith("()") else ""
        return _refused(f"{target} cannot be loaded: {type(error).__name__}: {error}{hint}")
    if isinstance(error, ConfigurationError):
        ours = [_package(step.tb_frame) == "karafka_lite" for step in frames]
        line = frames[ours.index(True) - 1 if True in ours else -1]  # where the user's code called ours
        return Refused(f"{_shown(line.tb_frame.f_code.co_filename)}:{line.tb_lineno}: {error}")
    if isinstance(error, ModuleNotFoundError):
        hint = f"{error.name!r} is not installed for {sys.executable}: install it there, or correct the import"
    elif isinstance(error, SystemExit):
        hint = 'it ended the process; put what starts the program under: if __name__ == "__main__":'
    else:
        hint = "correct what the traceback shows, then type the same again"
    trace = "".join(traceback.format_exception(type(error), error, frames[0]))
    return _refused(f"{target} cannot be loaded, its own code raised\n\n{trace}\n{hint}")


def _users_frames(error: BaseException) -> list[TracebackType]:
    """The steps of the traceback from the first that is neither ours nor the import machinery's."""
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
    return f" (did you mean {_shown(path.with_name(near[0] + suffix))}?)" if near else ""


def _place(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return _shown(file) if file else f"{module.__name__} (a folder)"


def _kind(found: object) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}"
    if inspect.isroutine(found):
        return "a function"
    return "None" if found is None else f"an object of type {type(found).__name__}"


def _shown(path: str | Path) -> str:
    """Short where it can be: relative to the current directory when it is in there."""
    try:
        return str(Path(path).relative_to(os.getcwd()))
    except ValueError:
        return str(path)
