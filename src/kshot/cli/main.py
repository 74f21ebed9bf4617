"""The command ``kshot``: finds the command that was named, runs it, and turns what went wrong into an exit status.

0 done · 2 the caller's mistake (one message, no traceback) · 1 our bug (a traceback) · 130 Ctrl-C · 143 SIGTERM.
A new command is one file and one line of ``COMMANDS``. Nothing heavy is imported before a command is chosen.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import TracebackType

import kshot
from kshot.cli.signals import Stopped, listening

#: Name -> what it does; ``run(args)`` in ``kshot.cli.NAME`` (a dash is an underscore there) does it and returns the
#: exit status.
COMMANDS = {
    "demo": "see it work: offline, three learners, unseen scripts, in a few minutes",
    "fit": "learn your own classes from a few examples: images, text, molecules, tables",
    "predict": "name new examples, with probabilities; tell what is none of the classes",
    "add": "add a class to a fitted model, without fitting it again",
    "remove": "remove a class from a fitted model",
    "info": "what a fitted model knows, and how well",
    "label-next": "choose unlabelled examples whose labels would teach a model the most",
    "export": "write a fitted model as ONNX",
    "train": "meta-train an algorithm on a data set",
    "evaluate": "test a trained run on new tasks, with 95% intervals",
    "heads": "test many heads on the frozen features of a trained run, in seconds",
    "report": "picture one run or several in one HTML file",
    "list": "algorithms, data sets and recipes there are",
    "data": "what is on disk; fetch, verify",
    "reproduce": "published results: run a recipe, compare with the paper",
    "bench": "speed against the plain loop, peers and the limit",
}

_USAGE = """\
kshot {version}: learn a new task from a handful of examples

usage: kshot COMMAND ...

{commands}

examples:
  kshot demo
  kshot fit photos/ --out birds.kshot
  kshot train protonet --data omniglot --out runs/first
  kshot train maml --data sinusoid --n-shot 5 --steps 5000
  kshot evaluate runs/first --n-way 20 --json -

`kshot COMMAND --help` says all about a command.
Exit status: 0 done, 2 a mistake in what was asked, 1 a bug of kshot.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; those of this process if None.

    Returns:
        The exit status.

    Raises:
        ValueError: one that is not the caller's mistake, as any other error that is a bug of ours.
    """
    if argv is None:
        sys.excepthook = _report_bug
        _print_anything()
    args = list(sys.argv[1:] if argv is None else argv)
    with listening() as heard:
        try:
            status = _dispatch(args)
            sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
            return 128 + 13
        except KeyboardInterrupt as stop:
            if _is_main_process():
                print(f"\n{stop}" if isinstance(stop, Stopped) else "\ninterrupted", file=sys.stderr)
            return _child(128 + (heard()[-1:] or [2])[0])
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except ValueError as error:
            if not _is_user_error(error):
                raise
            if _is_main_process():
                print(f"error: {error}", file=sys.stderr)
            return _child(2)
    return status


def _print_anything() -> None:
    # A terminal that has no sign for plus-minus gets a question mark, not an error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
        print(_USAGE.format(version=kshot.__version__, commands=commands), end="")
        return 0
    if args[0] in ("-V", "--version"):
        print(f"kshot {kshot.__version__}")
        return 0
    if args[0] not in COMMANDS:
        # Imported here, since it brings torch with it.
        from kshot.core import UserError
        from kshot.core.registry import unknown

        raise UserError(f"{unknown('command', args[0], list(COMMANDS))}. See kshot --help")
    with _loading():
        command = importlib.import_module(f"kshot.cli.{args[0].replace('-', '_')}")
    return command.run(args[1:])


@contextmanager
def _loading() -> Iterator[None]:
    # PyTorch takes seconds to load: long enough to wonder.
    shown = sys.stderr.isatty() and _is_main_process()
    if shown:
        print("loading ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _is_user_error(error: ValueError) -> bool:
    from kshot.core.errors import UserError

    return isinstance(error, UserError)


def _is_main_process() -> bool:
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _child(status: int) -> int:
    # A child process that ends badly has its whole run killed, the main process with it, before that could say why.
    return status if _is_main_process() else 0


def _silence_stdout() -> None:
    # The reader of our output went away, as `head` does. Python would complain once more when it flushes at the end.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if not issubclass(kind, KeyboardInterrupt):
        print(
            "\nThis is a bug in kshot, not your mistake. Please report it with the lines above and the command.",
            file=sys.stderr,
        )
