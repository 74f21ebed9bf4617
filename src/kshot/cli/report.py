"""``kshot report``: picture one run or several in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from kshot.cli.fitted import check_apart, check_report_free
from kshot.cli.flags import parse
from kshot.cli.live import Display, Parts
from kshot.core import UserError
from kshot.experiment.reporting import N_EPISODES, Look, write_reports

_ABOUT = """\
Write a self-contained HTML report: results with intervals, paired differences
where runs saw the same episodes, training curves, sampled episodes with
answers, scores against shots and inner steps, embedding, confusions,
calibration. RUN is a run folder, or the JSON of `kshot evaluate --json`.

examples:
  kshot report runs/proto
  kshot report runs/proto runs/maml --out both.html"""


@dataclass(frozen=True)
class Report:
    """Settings of ``kshot report``.

    Attributes:
        runs: run folders, or JSON records.
        out: the HTML file.
        n_episodes: episodes behind each point of a curve and for pictures; results themselves are not measured again.
        device: auto, cpu, cuda, cuda:0, mps.
        threads: threads on a CPU; 0 for PyTorch's choice.
        data_root: where data sets lie.
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...", help_behavior_hint="")]] = ()
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="(default: RUN/report.html, or report.html)")] = ""
    n_episodes: int = N_EPISODES
    device: str = "auto"
    threads: int = 0
    data_root: Annotated[
        str, arg(metavar="DIR", help_behavior_hint="(default: KSHOT_DATA, or the user's cache folder)")
    ] = ""


def run(args: Sequence[str]) -> int:
    """Write the report.

    Args:
        args: the command line after ``kshot report``.

    Returns:
        The exit status.

    Raises:
        UserError: no run is named, or one twice, or the report would be written over something else.
    """
    asked = parse(Report, args, prog="kshot report", about=_ABOUT)
    if not asked.runs:
        raise UserError("expected the folder of a run: kshot report RUN ...")
    if len({path.resolve() for path in asked.runs}) < len(asked.runs):
        raise UserError("expected each run once; name a run folder only once")
    out = Path(asked.out) if asked.out else _default(asked.runs)
    check_report_free(out)
    check_apart(str(out), *map(str, asked.runs))
    if asked.threads > 0:
        torch.set_num_threads(asked.threads)
    with Display() as display:
        parts = Parts(display)
        look = Look(asked.n_episodes, asked.device, Path(asked.data_root) if asked.data_root else None, parts)
        write_reports(asked.runs, out, look)
        parts.close()
    print(out)
    return 0


def _default(runs: Sequence[Path]) -> Path:
    return runs[0] / "report.html" if len(runs) == 1 and runs[0].is_dir() else Path("report.html")
