"""``kshot bench``: how fast, against its own plain loop, the installed peers, and the limit of the machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kshot.bench.cases import CASES, Result, run_case, runnable
from kshot.bench.growth import picture
from kshot.cli.flags import first_positional, parse
from kshot.cli.live import Display
from kshot.cli.words import command_line
from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.core.registry import unknown
from kshot.evaluation.provenance import commit, environment


@dataclass(frozen=True)
class Bench:
    """Settings of ``kshot bench``.

    Attributes:
        rounds: measured rounds in which the contenders take turns; the median counts.
        threads: threads of PyTorch; 0 for its choice.
        json: file that the result is written to; - for standard output; none if empty.
        plot: SVG file that the case growth is drawn into; none if empty.
        data_root: where data sets are; KSHOT_DATA or the user's cache folder if empty.
    """

    rounds: int = 5
    threads: int = 0
    json: str = ""
    plot: str = ""
    data_root: str = ""


def run(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: after its name.

    Returns:
        The exit status.

    Raises:
        UserError: no such case, no rounds, or nothing to draw.
    """
    name = first_positional(args)
    about = f"Time one case, or all of them: kshot bench [CASE] [options]. Cases: {', '.join(CASES)}"
    asked = parse(Bench, args[1:] if name else args, prog="kshot bench", about=about)
    if name is not None and name not in CASES:
        raise UserError(unknown("case", name, list(CASES)))
    if asked.plot and name != "growth":
        raise UserError(f"--plot draws the case growth, got {name or 'all cases'}; use: kshot bench growth --plot FILE")
    if asked.rounds < 1:
        raise UserError(f"expected rounds >= 1, got {asked.rounds}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    root = Path(asked.data_root) if asked.data_root else None
    quiet = asked.json == "-"
    results = []
    with Display() as display:
        for case in [name] if name else runnable():
            with display.waiting(f"{case}: {asked.rounds} rounds"):
                results.append(run_case(case, asked.rounds, root, display.say))
            if not quiet:
                _print(results[-1])
    if asked.plot:
        write_atomically(Path(asked.plot), picture(results[0]))
    _write(asked.json, {"command": command_line("bench", args), "rounds": asked.rounds, **_about(), "cases": results})
    return 0


def _print(result: Result) -> None:
    table = Table("contender", "a step", "fastest to slowest", "kshot is faster by", "", box=None, pad_edge=False)
    for line in result.lines:
        spread = f"{_time(line.spread[0])} to {_time(line.spread[1])}"
        faster = "" if line.ratio is None else f"{line.ratio[0]:.2f} ({line.ratio[1]:.2f} to {line.ratio[2]:.2f})"
        table.add_row(line.name, _time(line.seconds), spread, faster, line.note)
    print(f"\n{result.case}: {result.what}")
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    if result.agreement:
        print(f"checked: {result.agreement}")
    if "share_of_peak" in result.extra:
        peak, count = result.extra["peak_flops"] / 1e9, result.extra["operations"] / 1e9
        share = 100 * result.extra["share_of_peak"]
        print(f"limit: {count:.1f} G operations a step, peak {peak:.0f} G/s measured: {share:.0f}% of it reached")
    for name, seconds in result.extra.items():
        if name.endswith(", more_s"):
            print(f"{name.removesuffix(', more_s')}: {seconds:.2f} s more than import torch")
    word = "reached" if result.passed else "missed"
    if result.per_minute is not None:
        print(f"asked: {result.per_minute:,.0f} a minute: {word}, {60 / result.lines[0].seconds:,.0f}")
    elif result.passed is not None:
        print(f"asked: {result.least} times faster than {result.against}: {word}")


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _about() -> dict[str, Any]:
    return {"schema": 1, "commit": commit(), "environment": environment("cpu")}


def _write(where: str, found: dict[str, Any]) -> None:
    if not where:
        return
    cases = [{**dataclasses.asdict(r), "passed": r.passed} for r in found["cases"]]
    text = json.dumps({**found, "cases": cases}, indent=2) + "\n"
    if where == "-":
        print(text, end="")
    else:
        write_atomically(Path(where), text.encode())
