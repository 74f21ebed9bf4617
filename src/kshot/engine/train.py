"""The outer loop: draw tasks, take the outer gradient, update; validate, log, save, go on after any interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from kshot.core import DivergedError, Episode, Learner, Tree, UserError, generator
from kshot.engine.auto import computed
from kshot.engine.batch import Batching, OuterGradient, OuterStep, combine
from kshot.engine.checkpoint import Checkpoints, save_tree
from kshot.engine.choices import choose_once
from kshot.engine.config import TrainConfig
from kshot.engine.distributed import average, converted, deterministic_kernels, make_fabric, synchronise
from kshot.engine.inner import Random, replace_buffers
from kshot.engine.interrupt import stop_requests
from kshot.engine.log import Log
from kshot.engine.memory_plan import refuse_too_large
from kshot.engine.outer import clip, frozen, make_optimiser, rate_factor, rate_groups
from kshot.engine.processes import end_idle
from kshot.engine.progress import Progress
from kshot.engine.rewind import Rewind

WITHOUT_COMPILER = "no working C++ compiler was found, so steps are not compiled; install one, or leave --compile off"
WITHOUT_ANSWERS = "not all answers of the validation at step {step} were finite; it counts as worse than any other"
BACK = "{what} at step {step}: on from the weights of step {best}, at {rate} of the planned rate"
SPENT = "the validation fell at step {step}, and training goes on as it is, since it went back ten times before"
ADVICE = "the last good checkpoint is kept. Try a smaller outer_lr or inner_lr, clip_norm=10, or fewer inner steps"


class Loader(Protocol):
    """Gives batches of episodes, for ever, and can be put back to where it was.

    Attributes:
        n_tasks: T of a batch, in all processes together.
    """

    n_tasks: int

    def __next__(self) -> Episode | list[Episode]: ...
    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: tensors, numbers and texts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken."""
        ...


class Trainer:
    """Meta-trains a learner.

    Args:
        learner: what to train; moved to the fabric's device.
        loader: the training episodes.
        config: settings.
        fabric: device, precision and processes, launched; by default one process on the CPU.
        out: run folder for checkpoints; None to keep everything in memory.
        validate: scores the learner, higher is better, minus infinity where it has no finite answer; called with the
            learner in evaluation mode.
        on_event: told of "start", "step", "validate", "checkpoint" and "warning", with the step and some values.
        logs: where metrics go.
        validate_first: validate before the first step, too, as for weights that were trained; so does ``rewind``.
    """

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        config: TrainConfig,
        *,
        fabric: Fabric | None = None,
        out: Path | None = None,
        validate: Callable[[Learner], float] | None = None,
        on_event: Callable[[str, int, dict[str, Any]], None] | None = None,
        logs: Sequence[Log] = (),
        validate_first: bool = False,
    ) -> None:
        self.fabric = fabric or make_fabric("cpu")
        self.fabric.strategy.precision.convert_module(learner)
        self.learner = learner.to(self.fabric.device)
        if self.fabric.world_size > 1 and loader.n_tasks < self.fabric.world_size:
            raise UserError(
                f"n_tasks={loader.n_tasks} cannot be shared by {self.fabric.world_size} processes; "
                f"pass n_tasks={self.fabric.world_size} or more, or fewer devices"
            )
        self.loader, self.config, self.validate = loader, config, validate
        self.on_event = on_event if on_event is not None else lambda name, step, values: None
        self.logs = logs if self.fabric.is_global_zero else ()
        self.checkpoints = Checkpoints(out / "checkpoints") if out else None
        self.rates = rate_groups(learner, config.outer_groups)
        self.frozen = self.rates.pop(0.0, [])
        named = dict(learner.named_parameters())
        first, *others = ([named[name] for name in names] for names in self.rates.values() or [[]])
        self.optimiser = make_optimiser(first, config.optimiser, config.outer_lr, config.weight_decay, config.momentum)
        for params in others:
            self.optimiser.add_param_group({"params": params})
        self.progress, self.rewind = Progress(), Rewind(config.rewind)
        self._validates_first = bool((validate_first or config.rewind) and validate and config.validate_every)
        self.outer_step: OuterStep | None = None
        self._how = ""
        self._room_is_known = config.batching == "auto" and not config.deterministic
        #: Of the global generators, where training was interrupted.
        self._random: list[Tensor] = []

    def fit(self, resume: bool = False) -> Progress:
        """Train until the last step, an early stop, or a request to stop (Ctrl-C, SIGTERM).

        Args:
            resume: go on from the newest usable checkpoint; the result is what one run without a break gives.

        Returns:
            Where the run ended; the learner holds the last weights, ``checkpoints/best.safetensors`` the best.

        Raises:
            DivergedError: a loss or gradient was not finite; the last good checkpoint is kept.
            UserError: nothing to resume from, another run's checkpoints in the way, a file could not be written, or
                the batching that was asked for does not fit into memory.
        """
        self._refuse_another_run(resume)
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        kept = frozen(self.learner, self.frozen)
        with (
            torch.random.fork_rng(devices),
            deterministic_kernels(self.config.deterministic),
            kept,
            stop_requests() as stop,
        ):
            # Dropout and the like draw from the global generator: it is seeded here and restored afterwards.
            torch.manual_seed(generator(self.config.seed, "global").initial_seed())
            self.learner.train()
            if resume:
                self._restore()
            elif self.progress.stopped == "interrupted":
                self.progress.stopped = ""
                self._draw_from(self._random)
            self._prepare()
            clock = time.perf_counter() - self.progress.seconds
            try:
                while not self.progress.stopped:
                    self._step_or_back(clock, stop)
            finally:
                self._random = self._generators()
                self._end_workers()
        self.learner.eval()
        return self.progress

    def _refuse_another_run(self, resume: bool) -> None:
        if resume or self.progress.step > 0 or self.checkpoints is None:
            return
        # Asked of one process, since it may have written its first checkpoint before another one looks.
        if self.fabric.broadcast(self.fabric.is_global_zero and bool(self.checkpoints.steps())):
            raise UserError(
                f"expected no checkpoints in {self.checkpoints.folder}, got those of another run; "
                "resume that one, or choose another folder"
            )

    def _prepare(self) -> None:
        """Settle how tasks are batched, once for the whole run, and save the start."""
        if self.progress.step >= self.config.steps:
            self.progress.stopped = "done"
        synchronise(self.fabric, self.learner)
        if self.outer_step is None:
            self.outer_step = OuterStep(self.learner, self._choose_batching(), self.fabric.autocast)
        told = {"batching": str(self.outer_step.batching), **({"how": self._how} if self._how else {})}
        self.on_event("start", self.progress.step, told)
        if self.progress.step == 0:
            if self._validates_first and self.progress.best is None:
                self._log({"seconds": self.progress.seconds, "val": self._validate()})
            self._save()

    def _choose_batching(self) -> Batching:
        c = self.config
        compiled = c.compile == "on"
        rule = "fused" if self.learner.fused and not compiled else "native" if self.learner.native else "loop"
        if c.batching != "auto":
            several = {"inside": rule, "workers": c.workers} if c.batching == "processes" else {}
            return Batching(c.batching, c.chunk, compiled, c.recompute, **several)
        if c.deterministic:
            return Batching(rule, c.chunk, compiled, c.recompute)
        before = self.loader.state_dict()
        batch = self._next()
        self.loader.load_state_dict(before)
        options: dict[str, Any] = {"n_steps": c.steps, "compiled": c.compile, "autocast": self.fabric.autocast}
        # A run that remembers the choice of another one draws the same dropout as one that measures.
        with Random().again():
            choice = choose_once(self.learner, batch, anew=c.measure_anew, **options)
        self._how = "measured before" if choice.remembered else "measured"
        if not choice.remembered and any(
            seconds == math.inf for way, seconds in choice.seconds.items() if "compiled" in way
        ):
            self.on_event("warning", 0, {"message": WITHOUT_COMPILER})
        # All processes must run the same program, though their clocks may disagree.
        return self.fabric.broadcast(choice.batching)

    def _end_workers(self) -> None:
        if self.outer_step is not None:
            self.outer_step.close()
        end_idle()

    def _next(self) -> Episode | list[Episode]:
        return converted(self.fabric, next(self.loader))

    def _looked_at(self, batch: Episode | list[Episode]) -> Episode | list[Episode]:
        # Measured batchings were planned for; what somebody asked for is kept, so it can only be refused.
        if self.outer_step is not None and not self._room_is_known:
            with Random().again():
                refuse_too_large(self.outer_step, batch)
            self._room_is_known = True
        return batch

    def _step_or_back(self, clock: float, stop: Event) -> None:
        try:
            self._one_step()
            self.progress.seconds = time.perf_counter() - clock
            self._after_step(stop.is_set())
        except DivergedError as error:
            if not self.rewind.possible:
                raise
            self._go_back(f"{error.what} is not finite")
            if self.progress.stopped:  # It was seen when the last step was to be saved.
                self._save()

    def _go_back(self, what: str) -> None:
        p, self.rewind.times = self.progress, self.rewind.times + 1
        # Counters of steps go on, as the steps do.
        counters = {k: v for k, v in self.learner.state_dict().items() if not v.is_floating_point()}
        self.learner.load_state_dict({**self.rewind.weights, **counters})
        p.bad = 0
        # Its running means are of the weights that were left.
        self.optimiser.state.clear()
        told = {"what": what, "step": f"{p.step:,}", "best": f"{p.best_step:,}", "rate": f"{self.rewind.rate:.3g}"}
        self.on_event("warning", p.step, {"message": BACK.format(**told)})

    def _one_step(self) -> None:
        if self.outer_step is None:
            raise RuntimeError("the trainer was not prepared")
        # Rounded once, after the last sum: so the run is the same however its tasks are shared out.
        batches = (self._looked_at(self._next()) for _ in range(self.config.accumulate))
        gradient = combine((computed(self.outer_step, batch) for batch in batches), wide=True)
        if self.fabric.world_size > 1:
            before = dict(self.learner.named_buffers())
            gradient = average(self.fabric, gradient, self.loader.n_tasks * self.config.accumulate, before)
        grads, norm = clip(gradient.grads, self.config.clip_norm, self.config.clip_value)
        loss = gradient.losses.mean()
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            self._diverged(gradient)
        c, step = self.config, self.progress.step
        rate = c.outer_lr * rate_factor(step, c.steps, c.schedule, warmup=c.warmup, every=c.lr_every, gamma=c.lr_gamma)
        rate *= self.rewind.rate
        for group, factor in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for name, p in self.learner.named_parameters():
            p.grad = grads[name].to(p.dtype) if name in grads else None
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        replace_buffers(self.learner, gradient.buffers)
        if self.rewind.factor:
            # At once, so that the way back does not depend on when one saves.
            self._refuse_spoiled()
        self.progress.step += 1
        self._last = {"loss": float(loss), "grad_norm": float(norm), "outer_lr": rate}

    def _diverged(self, gradient: OuterGradient) -> None:
        bad = [f"the gradient of {k}" for k, g in gradient.grads.items() if not bool(torch.isfinite(g).all())]
        finite = bool(torch.isfinite(gradient.losses).all())
        what = "the outer loss" if not finite else bad[0] if bad else "the norm of the outer gradient"
        began = self.outer_step.first_divergence() if self.outer_step else None
        where = f". It began with {began}" if began else ""
        raise DivergedError(self.progress.step + 1, what, ADVICE + where)

    def _after_step(self, stop: bool) -> None:
        c, p = self.config, self.progress
        last = p.step >= c.steps
        values = {**self._last, "seconds": p.seconds}
        if self.validate is not None and c.validate_every and (p.step % c.validate_every == 0 or last):
            values["val"] = self._validate()
            if c.patience and p.bad >= c.patience:
                p.stopped = "early"
        if last:
            p.stopped = "done"
        elif self._any(stop):
            p.stopped = "interrupted"
        if p.step % c.log_every == 0 or "val" in values or p.stopped:
            self._log(values)
        self.on_event("step", p.step, values)
        if p.step % c.checkpoint_every == 0 or p.stopped:
            self._save()

    def _log(self, values: dict[str, float]) -> None:
        for log in self.logs:
            log.write(self.progress.step, values)

    def _any(self, flag: bool) -> bool:
        # All processes must leave after the same step.
        if self.fabric.world_size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.fabric.device)
        torch.distributed.all_reduce(votes)
        return bool(votes.item() > 0)

    def _validate(self) -> float:
        value = 0.0
        if self.fabric.is_global_zero and self.validate is not None:
            self.learner.eval()
            value = float(self.validate(self.learner))
            self.learner.train()
        value = self.fabric.broadcast(value)
        p = self.progress
        p.bad += 1
        if value == -math.inf:
            self.on_event("warning", p.step, {"message": WITHOUT_ANSWERS.format(step=p.step)})
        if value > (-math.inf if p.best is None else p.best):
            p.best, p.best_step, p.bad = value, p.step, 0
            self.rewind.keep(self.learner)
        if value > -math.inf and self.checkpoints and self.fabric.is_global_zero:
            tree = {"learner": self.learner.state_dict(), "step": p.step, "val": value}
            if p.best_step == p.step:
                save_tree(self.checkpoints.best, tree)
            if self.config.keep_best > 1:
                self.checkpoints.keep_validated(p.step, tree, self.config.keep_best)
        self.on_event("validate", p.step, {"val": value, "best": p.best, "best_step": p.best_step})
        if self.rewind.factor and self.rewind.falls(value, p.best) and p.step < self.config.steps:
            self._after_fall()
        return value

    def _after_fall(self) -> None:
        if self.rewind.possible:
            self._go_back("the validation lost more than half of what it had gained")
        elif self.rewind.weights:
            self.on_event("warning", self.progress.step, {"message": SPENT.format(step=f"{self.progress.step:,}")})

    def _save(self) -> None:
        if self.checkpoints is None or self.outer_step is None:
            return
        self._refuse_spoiled()
        if self.fabric.is_global_zero:
            path = self.checkpoints.save(self.progress.step, self._tree())
            self.on_event("checkpoint", self.progress.step, {"path": path})

    def _refuse_spoiled(self) -> None:
        # A rate that is much too large can spoil the weights through a finite gradient.
        for name, p in self.learner.named_parameters():
            if not bool(torch.isfinite(p).all()):
                raise DivergedError(self.progress.step, f"the parameter {name}", ADVICE)

    def _tree(self) -> Tree:
        batching = self.outer_step.batching if self.outer_step else Batching()
        return {
            "progress": dict(vars(self.progress)),
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "optimiser_name": self.config.optimiser,
            "loader": self.loader.state_dict(),
            "rng": self._generators(),
            "batching": dict(vars(batching)),
            "rewind": self.rewind.state_dict(),
        }

    def _generators(self) -> list[Tensor]:
        cuda = [torch.cuda.get_rng_state(self.fabric.device)] if self.fabric.device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    def _draw_from(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.fabric.device.type == "cuda" and len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.fabric.device)

    def _restore(self) -> None:
        if self.checkpoints is None:
            raise UserError("expected a run folder to resume from, got none; pass out=")
        tree, _, problems = self.checkpoints.load_newest()
        for problem in problems:
            self.on_event("warning", 0, {"message": f"{problem}. The checkpoint before it is used."})
        try:
            if tree["optimiser_name"] != self.config.optimiser:
                raise ValueError(f"it was trained by {tree['optimiser_name']}, not {self.config.optimiser}")
            self.learner.load_state_dict(tree["learner"])
            self.optimiser.load_state_dict(tree["optimiser"])
            self.loader.load_state_dict(tree["loader"])
            self.progress = Progress(**tree["progress"])
            self.rewind.load_state_dict(tree.get("rewind") or self.rewind.state_dict())
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"this checkpoint is of another learner or optimiser: {error}") from error
        self.progress.stopped = ""
        if self.progress.best is not None and self.config.patience and self.progress.bad >= self.config.patience:
            self.progress.stopped = "early"
        self.checkpoints.forget_validated(self.progress.step)
        self._draw_from(tree["rng"])
        self.outer_step = OuterStep(self.learner, Batching(**tree["batching"]), self.fabric.autocast)
        for log in self.logs:
            log.rewind(self.progress.step)
