"""Progress of long work: live bars on a terminal, a line now and then elsewhere; always on standard error."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from kshot.cli.words import score
from kshot.evaluation.report.wording import duration
from kshot.evaluation.scores import higher_is_better, metric_of

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two looks at a bar; and, where there is no terminal, between two lines at most and at least.
_LOOK, _LINE, _PAUSE = 0.1, 60.0, 5.0
_SMOOTH = 0.95


class _Rate(TextColumn):
    """How fast it goes, in the unit of the task."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields.get("unit", "")
        return Text(f"{speed:.3g} {unit}/s" if speed and unit else "", style="progress.data.speed")


class Display:
    """Where progress is shown. Use it as a context.

    Args:
        on: False to show nothing, as in all processes but the first.
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self.console = Console(stderr=True, highlight=False, quiet=not on)
        self.is_live = on and self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[info]}"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.is_live,
            # Standard output is for results, also while a bar is alive.
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str = "") -> None:
        """Write a line above the bars.

        Args:
            text: the line.
        """
        # Not `console.print`: a long path must stay one line where there is no terminal.
        if self.is_live:
            self._progress.console.print(text, markup=False, soft_wrap=True)
        elif self.on:
            print(text, file=sys.stderr, flush=True)

    def bar(self, title: str, total: float | None, unit: str = "", done: float = 0) -> TaskID:
        """Add a bar.

        Args:
            title: what is going on.
            total: how much there is to do; None where nobody knows, for a bar that only shows life.
            unit: what is counted.
            done: how much of it is done.

        Returns:
            Its number.
        """
        return self._progress.add_task(title, total=total, completed=int(done), unit=unit, info="")

    def move(self, bar: TaskID, done: float, total: float | None = None, info: str = "") -> None:
        """Move a bar.

        Args:
            bar: its number.
            done: how much is done.
            total: how much there is to do, if that changed.
            info: to stand beside it.
        """
        self._progress.update(bar, completed=done, total=total, info=info)

    def drop(self, bar: TaskID) -> None:
        """Take a bar away.

        Args:
            bar: its number.
        """
        self._progress.remove_task(bar)

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Show life while something happens that nobody can measure.

        Args:
            title: what happens.

        Yields:
            Nothing.
        """
        bar = self.bar(title, None)
        try:
            yield
        finally:
            self.drop(bar)


class RunView:
    """Shows one run: give its methods to ``train_run`` and ``evaluate_run``.

    Args:
        display: where.
        title: name of the run.
        steps: outer steps planned.
    """

    def __init__(self, display: Display, title: str, steps: int) -> None:
        self.display, self.title, self.steps = display, title, steps
        self._metric = "accuracy"
        self._bar: TaskID | None = None
        self._loss, self._weight = 0.0, 0.0
        self._best = ""
        self._looked = self._lined = self._began = time.monotonic()
        self._first = self._tenth = 0
        self._tested: TaskID | None = None
        self._files: dict[str, TaskID] = {}

    def on_event(self, name: str, step: int, values: dict[str, Any]) -> None:
        """Show what training tells.

        Args:
            name: see ``kshot.experiment.run.train_run``.
            step: outer steps done.
            values: of the event.
        """
        if name == "open":
            self.wait(f"{self.title}: opening {values['data']}")
        elif name == "built":
            self._metric = metric_of(values["learner"].spec.kind)
            self.steps = values["config"].train.steps  # A recipe may train what it starts from first.
            self.wait(f"{self.title}: measuring how to batch tasks")
        elif name == "start":
            self._start(step)
        elif name == "step":
            self._step(step, values)
        elif name == "validate":
            # Errors come with their sign turned, so that higher is better.
            value = values["val"] if higher_is_better(self._metric) else -values["val"]
            self._best = f"val {score(value, self._metric)}" if math.isfinite(value) else "val not finite"
        elif name == "warning":
            self.display.say(f"warning: {values['message']}")
        elif name == "test":
            self._close()

    def on_progress(self, done: int, total: int) -> None:
        """Show how far the test is.

        Args:
            done: episodes done.
            total: all.
        """
        if self._tested is None:
            self._close()
            self._tested = self.display.bar(f"{self.title}: testing", total, "episodes")
        self.display.move(self._tested, done, total, f"{done:,}/{total:,}")
        if done >= total:
            self.display.drop(self._tested)
            self._tested = None

    def on_download(self, name: str, done: int, total: int | None) -> None:
        """Show a download.

        Args:
            name: of the file.
            done: bytes that are here.
            total: bytes in all, if known.
        """
        if name not in self._files:
            self._files[name] = self.display.bar(f"downloading {name}", total)
            if not self.display.is_live:
                self.display.say(f"downloading {name}")
        self.display.move(self._files[name], done, total, f"{done / 1e6:.1f} MB")
        if total is not None and done >= total:
            self.display.drop(self._files.pop(name))

    def wait(self, title: str) -> None:
        """Show a bar that only tells that something goes on, in the place of the one before.

        Args:
            title: what goes on.
        """
        self._close()
        self._bar = self.display.bar(title, None)

    def close(self) -> None:
        """Take the bar away."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self.display.drop(self._bar)
            self._bar = None

    def _start(self, step: int) -> None:
        self._close()
        self._bar = self.display.bar(f"{self.title}: training", self.steps, "steps", step)
        self._began, self._first = time.monotonic(), step
        # A recipe may have trained something else before.
        self._loss = self._weight = 0.0
        self._best, self._tenth = "", 0

    def _step(self, step: int, values: dict[str, Any]) -> None:
        self._loss = _SMOOTH * self._loss + (1 - _SMOOTH) * values["loss"]
        self._weight = _SMOOTH * self._weight + (1 - _SMOOTH)
        now = time.monotonic()
        if self._bar is not None and (now - self._looked > _LOOK or step >= self.steps):
            self._looked = now
            self.display.move(self._bar, step, self.steps, f"{step:,}/{self.steps:,}  {self._numbers()}")
        tenth = 10 * step // self.steps
        due = now - self._lined > (_PAUSE if tenth > self._tenth else _LINE) or step >= self.steps
        if not self.display.is_live and due:
            self._tenth, self._lined = tenth, now
            self.display.say(f"{self.title}: step {step}/{self.steps}, {self._numbers()}, {self._speed(step, now)}")

    def _numbers(self) -> str:
        return f"loss {self._loss / self._weight:.4g}" + (f"  {self._best}" if self._best else "")

    def _speed(self, step: int, now: float) -> str:
        per_second = (step - self._first) / max(now - self._began, 1e-9)
        left = duration((self.steps - step) / per_second) if per_second else "unknown"
        return f"{per_second:.3g} steps/s, {left} left"


class Parts:
    """Shows how far the parts of a report are: a listener for ``kshot.experiment.reporting``.

    Args:
        display: where.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._bar: TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar, which is there from the first part on.

        Args:
            what: the part.
            done: episodes done.
            total: all.
        """
        if self._bar is None:
            self._bar = self._display.bar("report", None)
        self._display.move(self._bar, done, total, f"{what} {done}/{total}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._display.drop(self._bar)
            self._bar = None
