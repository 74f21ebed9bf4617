"""Flags made from dataclasses: one flat list for the algorithm and the data set at hand, parsed by tyro.

A class of settings becomes a group of flags, its docstring their help. What stands here beside tyro is what it cannot
know: options of algorithms and data sets (keyword parameters, not dataclasses), which flags were typed and which are
defaults, and errors as one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from kshot.core import UserError

T = TypeVar("T")

_INDENT = re.compile(r"( *)(\**\w+)(?: \(.*\))?: +(.*)")


def peek(args: Sequence[str], name: str) -> str | None:
    """Read a flag's value before the whole line is parsed.

    Args:
        args: the command line.
        name: of the flag, without dashes.

    Returns:
        The last value given, or None.
    """
    found = None
    for flag, after in itertools.zip_longest(args, args[1:]):
        given, equals, value = flag.partition("=")
        if given == f"--{name}":
            found = value if equals else after
    return found


def first_positional(args: Sequence[str]) -> str | None:
    """Return the argument that comes first, unless it is a flag.

    Args:
        args: the command line.

    Returns:
        The argument, or None.
    """
    return args[0] if args and not args[0].startswith("-") else None


def typed(args: Sequence[str], shape: type) -> set[str]:
    """Tell which settings were typed, and not left at their defaults.

    Args:
        args: the command line.
        shape: the class that it was parsed into.

    Returns:
        Names of fields.
    """
    known = set(field_names(shape))
    names = [arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]
    return {n if n in known else n.removeprefix("no_") for n in names} & known


def field_names(shape: type) -> list[str]:
    """List the settings of a class, those of the classes within it included.

    Args:
        shape: a dataclass.

    Returns:
        Their names, in order; a name that stands twice is listed twice.
    """
    return [name for name, _ in _flat(shape)]


def _flat(shape: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(shape)
    for f in dataclasses.fields(shape):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from _flat(hints[f.name])
        else:
            yield f.name, hints[f.name]


def options_class(
    title: str,
    parameters: Mapping[str, inspect.Parameter],
    helps: Mapping[str, str],
    defaults: Mapping[str, tuple[Any, str]],
) -> type:
    """Make a settings class of keyword parameters.

    Args:
        title: what they are, for the help.
        parameters: name -> parameter with an annotation and a default.
        helps: name -> help text.
        defaults: name -> a default in the place of the parameter's, and where it comes from.

    Returns:
        A dataclass. A parameter that may be None cannot be typed as None: ``typed`` tells whether it was given.
    """
    made = []
    for name, p in parameters.items():
        value, source = defaults.get(name, (p.default, ""))
        kind = _without_none(p.annotation)
        hint = f"(default: {_shown(value)}{f', {source}' if source else ''})"
        marked = Annotated[kind, tyro.conf.arg(help=helps.get(name, ""), help_behavior_hint=hint)]
        made.append((name, marked, dataclasses.field(default=_blank(kind) if value is None else value)))
    cls = dataclasses.make_dataclass("Options", made, frozen=True)
    cls.__doc__ = title
    return cls


def _without_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        left = [a for a in typing.get_args(annotation) if a is not type(None)]
        return left[0] if len(left) == 1 else annotation
    return annotation


def _blank(kind: Any) -> Any:
    # Stands for None, which no flag could give back; its value is never used.
    if typing.get_origin(kind) is tuple:
        return tuple(a() for a in typing.get_args(kind))
    return kind()


def _shown(value: Any) -> str:
    named = {None: "none", True: "on", False: "off"}
    if value is None or isinstance(value, bool):
        return named[value]
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def argument_helps(*documented: Any) -> dict[str, str]:
    """Read what docstrings say about arguments.

    Args:
        *documented: functions or classes with a Google-style ``Args:`` section.

    Returns:
        Name -> text in one line.
    """
    found: dict[str, str] = {}
    for thing in documented:
        section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.getdoc(thing) or "", re.MULTILINE)
        name = ""
        for line in section[1].splitlines() if section else []:
            match = _INDENT.fullmatch(line)
            if match and len(match[1]) == 4:
                name = match[2]
                found[name] = match[3]
            elif line.strip():
                found[name] += " " + line.strip()
    return {name: text.replace("``", "`") for name, text in found.items()}


def parse(shape: type[T], args: Sequence[str], *, prog: str, about: str, owners: Mapping[str, str] | None = None) -> T:
    """Parse a command line into a settings class.

    Args:
        shape: a dataclass; dataclasses within it are groups of flags.
        args: the arguments.
        prog: what was typed before them.
        about: the description in the help.
        owners: flags that exist elsewhere -> where, for a better message about a flag that is unknown here.

    Returns:
        The settings.

    Raises:
        UserError: a flag is unknown, a value missing or of the wrong type, or the number of threads is below 0.
        SystemExit: help was asked for and printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found, rest = tyro.cli(
                shape,
                prog=prog,
                description=about,
                args=args,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(f"{_one_line(said.getvalue())}. See {prog} --help") from stop
        raise
    if rest:
        raise UserError(f"{_unknown(rest[0], shape, owners or {})} See {prog} --help")
    # Looked at here for all commands that have the flag.
    if (threads := getattr(found, "threads", 0)) < 0:
        raise UserError(f"expected --threads of at least 0, got {threads}; 0 leaves the number to PyTorch")
    return found


def _one_line(box: str) -> str:
    # tyro draws a box: a title, the message, a rule, and advice.
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip("│ ") for line in box.splitlines()]
    message = []
    for line in lines[1:]:
        if set(line) & set("─╰"):
            break
        message.append(line)
    return " ".join(message).strip().rstrip(".")


def _unknown(arg: str, shape: type, owners: Mapping[str, str]) -> str:
    flag = arg.partition("=")[0]
    if not flag.startswith("-"):
        return f"unexpected argument {arg!r}: every setting has the name of its flag before it."
    owner = owners.get(flag.lstrip("-").replace("-", "_"))
    known = [f"--{name.replace('_', '-')}" for name in field_names(shape)]
    near = difflib.get_close_matches(flag, known, n=1)
    hint = f" It is an option of {owner}." if owner else f" Did you mean {near[0]}?" if near else ""
    return f"unknown option {flag}.{hint}"
