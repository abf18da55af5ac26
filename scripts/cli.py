"""The command ``steerdiff``: finds the command's module, runs it, and turns a user's errors into one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from steerdiff._version import __version__
from steerdiff.errors import UserError

from .suggestions import closest

__all__ = ["COMMANDS", "Command", "guarded", "main", "run"]


class Command(NamedTuple):
    """Where a command lives and what it does."""

    module: str  #: module in this folder, with ``main(arguments, prog)``
    usage: str  #: what follows the name
    help: str  #: one line


#: Commands by name. Only the module of the one that is called is imported.
COMMANDS = {
    "demo": Command("demo", "[--out FOLDER]", "draw and edit images with every method and make a page of them"),
    "sample": Command("sample", "PROMPT... [--n N]", "draw images from text"),
    "edit": Command("edit", "METHOD --image FILE ...", "edit an image with one of the methods"),
    "invert": Command("invert", "--image FILE", "invert an image by DDIM and reconstruct it"),
    "attention": Command("attention", "PROMPT [--words W ...]", "show where the model looks for each word"),
    "train": Command("train", "WHAT --folder FOLDER", "train a model"),
    "finetune": Command("finetune", "METHOD --source-text A --target-text B", "tune a model to an edit, once"),
    "evaluate": Command("evaluate", "WHAT", "measure samples and edits, against the truth where it is known"),
    "ablate": Command("ablate", "METHOD --sweep FIELD=A,B", "vary the settings of a method and measure each"),
    "reproduce": Command("reproduce", "PAPER", "the main experiment of a paper, with its published numbers"),
    "convert": Command("convert", "SOURCE TARGET [--to FORM]", "store published weights in another way"),
    "rerun": Command("rerun", "FILE", "make an image again, bit for bit, from the settings it carries"),
    "info": Command("info", "[WEIGHTS]", "say what is installed, and what a file of weights or an image holds"),
    "bench": Command("bench", "", "time the parts, beside other libraries where they are installed"),
}

_OUT_OF_MEMORY = "the memory is full; use fewer images at once (--batch), fewer steps or another device"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 1 (a result is not as asked), 2 (bad input), 130."""
    # Threads that spin while they wait bring a busy machine to a halt; PyTorch reads this when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda: _dispatch(list(arguments)))


def guarded(command: Callable[[], int]) -> int:
    """Call ``command`` and return its exit code; what a user or the machine did wrong becomes one line on stderr.

    A bug still gives a traceback, and with STEERDIFF_TRACEBACK=1 everything does.
    """
    warnings.showwarning = _show_warning
    try:
        return command()
    except KeyboardInterrupt:
        return _explain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _explain(_OUT_OF_MEMORY, 2)
    except (UserError, OSError) as error:
        return _explain(_one_line(error), 2)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            return _explain(_OUT_OF_MEMORY, 2)
        raise


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"steerdiff {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; {closest(name, COMMANDS)}")
    module = importlib.import_module(f"steerdiff.scripts.{COMMANDS[name].module}")
    code = module.main(rest, f"steerdiff {name}")
    return int(code or 0)


def _help() -> str:
    rows = [(f"{name} {command.usage}", command.help) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"  steerdiff {usage:<{width}}  {text}" for usage, text in rows]
    return "\n".join(
        [
            f"steerdiff {__version__}: controlled diffusion image generation",
            "",
            *lines,
            "",
            "steerdiff COMMAND --help shows all flags of a command. Every image carries the settings that made it.",
        ]
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.strerror:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "no space is left on the disk; free some or choose another folder"
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _explain(message: str, code: int) -> int:
    if os.environ.get("STEERDIFF_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"steerdiff: {message}", file=sys.stderr)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        print(f"steerdiff: warning: {' '.join(str(message).split())}", file=sys.stderr)
