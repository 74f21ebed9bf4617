"""``kshot heads``: embed a data set once by a trained run's network, and test many heads on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from kshot.cli.fitted import check_json_free
from kshot.cli.flags import parse
from kshot.cli.live import Display, RunView
from kshot.cli.tables import show, table
from kshot.cli.words import command_line, inference
from kshot.core import UserError
from kshot.core.files import write_atomically
from kshot.core.registry import unknown
from kshot.evaluation.provenance import commit, environment
from kshot.evaluation.scores import compare
from kshot.experiment.frozen import HEADS, HeadScore, freeze_run, score_heads

_ABOUT = """\
Embed a split of the run's data once (the features are kept in the cache), and
test heads on the same episodes of frozen features. Every head is compared with
the first of them, episode by episode. Transductive heads answer all queries of
a task together; a table that mixes both kinds says which is which.

examples:
  kshot heads runs/proto
  kshot heads runs/proto --heads protonet,simpleshot,tim --n-shot 5"""


@dataclass(frozen=True)
class Heads:
    """Settings of ``kshot heads``.

    Attributes:
        run: the run folder.
        heads: names, joined by commas.
        split: part of the data.
        n_way: classes of a task.
        n_shot: support examples of each class.
        n_query: query examples of each class.
        n_episodes: how many tasks.
        seed: of the episodes; the same seed gives the same episodes.
        threads: threads on a CPU; 0 for PyTorch's choice.
        json: write the results there; - for standard output, and nothing else.
        data_root: where data sets lie; KSHOT_DATA, or the user's cache folder if empty.
    """

    run: Positional[Annotated[str, arg(metavar="RUN", help_behavior_hint="")]] = ""
    heads: str = ",".join(HEADS)
    split: Literal["meta_train", "meta_val", "meta_test"] = "meta_test"
    n_way: int = 5
    n_shot: int = 1
    n_query: int = 15
    n_episodes: int = 600
    seed: int = 0
    threads: int = 0
    json: str = ""
    data_root: str = ""


def run(args: Sequence[str]) -> int:
    """Test heads.

    Args:
        args: the command line after ``kshot heads``.

    Returns:
        The exit status.

    Raises:
        UserError: no run or head is named, or one that does not exist.
    """
    asked = parse(Heads, args, prog="kshot heads", about=_ABOUT)
    names = [name for name in asked.heads.split(",") if name]
    for name in names:
        if name not in HEADS:
            raise UserError(unknown("head", name, list(HEADS)))
    if not asked.run or not names:
        raise UserError("expected the folder of a run and at least one head: kshot heads RUN --heads protonet,tim")
    check_json_free(asked.json)
    if asked.threads > 0:
        torch.set_num_threads(asked.threads)
    data, found = _score(asked, names)
    result = _result(asked, data, found, command_line("heads", args))
    if asked.json == "-":
        print(json.dumps(result, indent=2))
        return 0
    _print(asked, data, found)
    if asked.json:
        write_atomically(Path(asked.json), (json.dumps(result, indent=2) + "\n").encode())
        print(f"written to {asked.json}")
    return 0


def _score(asked: Heads, names: list[str]) -> tuple[str, list[HeadScore]]:
    with Display() as display:
        view = RunView(display, "embedding", 0)
        view.wait(f"opening {asked.run}")
        root = Path(asked.data_root) if asked.data_root else None
        frozen = freeze_run(Path(asked.run), split=asked.split, root=root, on_progress=view.on_progress)
        view.close()
        tasks: dict[str, Any] = {"n_way": asked.n_way, "n_shot": asked.n_shot, "n_query": asked.n_query}
        draws: dict[str, Any] = {"n_episodes": asked.n_episodes, "seed": asked.seed}
        with display.waiting(f"{len(names)} heads, {asked.n_episodes:,} tasks"):
            found = score_heads(names, frozen.features, **tasks, **draws, centre=frozen.centre, name=frozen.data)
    return frozen.data, found


def _result(asked: Heads, data: str, found: list[HeadScore], command: str) -> dict[str, Any]:
    rows = [
        {
            "head": head.name,
            "transductive": head.transductive,
            "mean": head.scores.estimate.mean,
            "ci95": head.scores.estimate.ci95,
            "seconds": round(head.scores.seconds, 3),
        }
        for head in found
    ]
    tasks = {"n_way": asked.n_way, "n_shot": asked.n_shot, "n_query": asked.n_query}
    return {
        "schema": 1,
        "run": Path(asked.run).name,
        "data": data,
        "split": asked.split,
        **tasks,
        "n_episodes": asked.n_episodes,
        "seed": asked.seed,
        "metric": "accuracy",
        "heads": rows,
        "command": command,
        "commit": commit(),
        "environment": environment(),
    }


def _print(asked: Heads, data: str, found: list[HeadScore]) -> None:
    print(f"{asked.n_way}-way {asked.n_shot}-shot on {data} {asked.split}, frozen features of {asked.run}")
    made = table("head", "accuracy", f"minus {found[0].name}", "inference", "seconds", unbroken=("head",))
    for head in found:
        gap = compare(head.scores, found[0].scores).difference if head is not found[0] else None
        made.add_row(
            head.name,
            f"{100 * head.scores.estimate.mean:.2f} ± {100 * head.scores.estimate.ci95:.2f} %",
            "" if gap is None else f"{100 * gap.mean:+.2f} ± {100 * gap.ci95:.2f}",
            inference(head.transductive),
            f"{head.scores.seconds:.1f}",
        )
    show(made)
    print(f"95% intervals over {found[0].scores.n_episodes:,} episodes, seed {asked.seed}; paired differences")
