"""Settings of the outer loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from kshot.core import UserError
from kshot.engine.batch import KINDS
from kshot.engine.outer import OPTIMISERS, rate_factor

CHOICES = {"optimiser": OPTIMISERS, "batching": ("auto", *KINDS), "compile": ("auto", "on", "off")}
NOT_NEGATIVE = (
    "weight_decay",
    "momentum",
    "warmup",
    "clip_norm",
    "clip_value",
    "chunk",
    "workers",
    "validate_every",
    "patience",
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the outer loop.

    Attributes:
        steps: outer steps.
        optimiser: adam, adamw, sgd or rmsprop (see ``kshot.engine.rmsprop``).
        outer_lr: outer learning rate (beta in MAML); 0.001 with adam is what MAML and ProtoNet use.
        outer_groups: patterns of parameter names, and factors on their outer learning rate, such as "model.0.*" 0.1; 0
            freezes, and the last pattern that fits counts.
        weight_decay: weight decay of the outer optimiser.
        momentum: Nesterov momentum of sgd, plain momentum of rmsprop.
        schedule: constant, step or cosine.
        lr_every: steps between two decays of the step schedule, 2000 in ProtoNet; with cosine, steps after which it
            begins again.
        lr_gamma: factor of a decay, or of a new beginning; 0.5 in ProtoNet.
        warmup: steps of linear rise of the outer learning rate.
        clip_norm: bound on the norm of the outer gradient; 0 for none.
        clip_value: bound on each entry of the outer gradient, before that on the norm; 0 for none, 10 in the paper of
            Neural Turing Machines.
        accumulate: batches of tasks whose gradients make one outer step.
        batching: auto (measured), loop, vmap, native, fused, or processes (on a CPU).
        workers: processes of batching=processes; 0 for as many as there are threads, at least two.
        measure_anew: with auto, measure again what an earlier run has measured on this machine.
        chunk: at most so many tasks at once under vmap or native; 0 for all.
        recompute: run inner steps a second time on the way back: less memory, more time; auto decides by itself.
        compile: off, on, or auto (where it pays for the time it takes).
        validate_every: steps between validations; 0 for none.
        patience: validations without a new best after which training stops; 0 for never.
        rewind: factor on the rate with which training goes on from its best weights, each time that a validation falls
            far below the best (see ``kshot.engine.rewind``), or a loss or gradient is not finite; 0 for never.
        keep_best: keep the weights of so many of the best validations, so that they can answer together.
        checkpoint_every: steps between checkpoints.
        log_every: steps between rows of metrics.csv.
        seed: of the initial weights and of the training episodes.
        deterministic: same device, same bits: no choice is left to a clock, and only deterministic kernels run.
    """

    steps: int = 1000
    optimiser: str = "adam"
    outer_lr: float = 1e-3
    outer_groups: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "constant"
    lr_every: int = 0
    lr_gamma: float = 0.5
    warmup: int = 0
    clip_norm: float = 0.0
    clip_value: float = 0.0
    accumulate: int = 1
    batching: str = "auto"
    workers: int = 0
    measure_anew: bool = False
    chunk: int = 0
    recompute: bool = False
    compile: str = "off"
    validate_every: int = 500
    patience: int = 0
    rewind: float = 0.0
    keep_best: int = 1
    checkpoint_every: int = 500
    log_every: int = 10
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "log_every", "keep_best"):
            if getattr(self, name) < 1:
                raise UserError(f"expected {name} >= 1, got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"expected {name} >= 0, got {getattr(self, name)}")
        self._check_validations()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        # A measurement plans the memory, and finds out what compiling gains; without one, somebody has to say.
        measured = self.batching == "auto" and not self.deterministic
        if self.chunk and measured:
            raise UserError(
                f"expected a batching beside chunk={self.chunk}, such as vmap or native, got auto, which plans how "
                "many tasks fit; name one, or leave chunk out"
            )
        if self.compile == "auto" and not measured:
            raise UserError("compile=auto goes with the measurement of batching=auto; say on or off here")
        rate_factor(0, self.steps, self.schedule, every=self.lr_every)

    def _check_validations(self) -> None:
        if not 0 <= self.rewind <= 1:
            raise UserError(f"expected rewind of 0 to 1, got {self.rewind}; 0.5 halves the rate each time")
        if self.validate_every:
            return
        if self.keep_best > 1:
            raise UserError(f"expected validations to keep the best {self.keep_best} of, got validate_every=0")
        if self.rewind:
            raise UserError("expected validations to go back to the best of, got validate_every=0 beside rewind")
