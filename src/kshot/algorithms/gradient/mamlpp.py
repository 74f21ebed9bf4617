"""MAML++: MAML made stable: losses after every step, learned rates, normalisation and its statistics of every step.

Paper: Antreas Antoniou, Harrison Edwards, Amos Storkey, "How to train your MAML", ICLR 2019, arXiv:1810.09502.

Idea: six remedies for MAML's unstable training, each for a cause that the paper names (section 4).

======================  ==============================================
paper                   here
======================  ==============================================
v_i, MSL                ``importance``: loss after every step (Eq. 3)
DA                      ``first_order_steps``
BNRS, BNWB              ``per_step``: normalisation of every step
alpha, LSLR             ``rates``: one for each tensor and step
CA                      the trainer's ``schedule="cosine"``
N                       ``n_inner_steps``
======================  ==============================================

Differs from the paper: what the paper counts in epochs of 500 outer steps is counted in outer steps. Running statistics
are used where normalisation "running" asks for them; the authors' code keeps them but always normalises by the batch at
hand, which is "episode". The scale and shift of a normalisation do not adapt, as in the authors' code. Steps beyond the
trained ones take the rates, scales, shifts and statistics of the last.

Checked by: tests/reference/test_gradient_family.py (plain loops), tests/algorithms/test_mamlpp.py (weights of the
losses, with all remedies off MAML).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kshot.core import Episode, Spec, Split, UserError, register, task_loss
from kshot.engine.inner import FusedInnerLoop, Inner, Named, Weights, check_rate, known, preconditioned, sgd, unrolled
from kshot.nn.norm import give_every_step_its_own

#: Least share of 1 / N that an early loss keeps while losses of all steps count (the authors' code).
LEAST = 0.03


@register(
    "mamlpp",
    family="gradient",
    paper="Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019, arXiv:1810.09502",
)
class MAMLpp(FusedInnerLoop):
    """MAML++.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O); a copy is taken.
        inner_lr: where the learned rates start; 0.1 on Omniglot.
        n_inner_steps: N while training; 5 in the paper.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        multi_step_steps: outer steps in which the losses after all inner steps count, less and less; 10 epochs of
            500 in the paper.
        first_order_steps: outer steps without second derivatives at the start; 0 in the authors' settings, 50 epochs
            of 500 in the paper's text.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a step count or rate that makes no sense.
    """

    outer_steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.1,
        n_inner_steps: int = 2,
        n_inner_steps_eval: int = 0,
        multi_step_steps: int = 0,
        first_order_steps: int = 0,
        truncate: int = 0,
    ) -> None:
        super().__init__(copy.deepcopy(model), n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        if multi_step_steps < 0 or first_order_steps < 0:
            raise UserError(f"expected outer steps >= 0, got {multi_step_steps} and {first_order_steps}; 0 is never")
        self.multi_step_steps, self.first_order_steps = multi_step_steps, first_order_steps
        self.per_step = give_every_step_its_own(self.model, n_inner_steps)
        self.adapted = [k for k, _ in self.model.named_parameters() if k not in self.per_step]
        self.rates = nn.ParameterList(torch.full((n_inner_steps,), inner_lr) for _ in self.adapted)
        self.register_buffer("outer_steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the paper's settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            Five steps, losses of all of them for ten epochs; MAML's rate for regression, which the paper leaves out.
        """
        options = {"n_inner_steps": 5, "multi_step_steps": 5000}
        return options | ({"inner_lr": 0.01} if spec.kind == "regression" else {})

    @property
    def backbone(self) -> nn.Module | None:
        """None: without a step to say whose scales they are, the layers cannot run."""
        return None

    @property
    def exact_gradient(self) -> bool:
        """False while derivative-order annealing leaves the second derivatives out, or where steps are left out."""
        return int(self.outer_steps) >= self.first_order_steps and not self.truncated

    def inner(self, n_steps: int) -> Inner:
        """Step with the rates of each tensor and step (LSLR), of the order that annealing has come to (DA).

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        rates = [{k: r[i] for k, r in zip(self.adapted, self.rates, strict=True)} for i in range(self.n_inner_steps)]
        done = known(self.outer_steps) if self.first_order_steps else self.first_order_steps
        how: dict[str, Any] = {"adapted": self.adapted, "truncate": self.truncate}
        if done is not None:
            return Inner(rates, n_steps, first_order=done < self.first_order_steps, **how)
        # Compiled once for all outer steps: both orders are in the program.
        full = self.outer_steps >= self.first_order_steps
        rule = preconditioned(lambda g, on: {k: torch.where(on, t, t.detach()) for k, t in g.items()}, full, sgd())
        return Inner(rates, n_steps, rule, **how)

    def support_loss(self, weights: Weights, support: Split, step: int) -> tuple[Tensor, Weights]:
        """Loss under the normalisation of this very step (BNRS, BNWB).

        Args:
            weights: before the step; scales, shifts and statistics of all steps.
            support: x (S, ...), y (S,) int64 or (S, O).
            step: from 0 on.

        Returns:
            A scalar, and the weights with the statistics of this step as the forward pass left them.
        """
        loss, after = super().support_loss(self._of_step(weights, step), support, step)
        return loss, Weights(weights.params, self._kept(weights.buffers, after.buffers, step))

    def path(self, support: Split, n_steps: int, *, every: bool) -> Iterator[Weights]:
        """Yield the weights on the way, under the normalisation of the step that led to them.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).
            n_steps: k.
            every: yield those after 0, 1, ..., k steps, else the last alone.

        Yields:
            Weights that queries can be answered with.
        """
        first = 0 if every else n_steps
        steps = unrolled(self.support_loss, self.start(support), support, self.inner(n_steps), every=every)
        for done, weights in enumerate(steps, first):
            yield self.with_statistics(self._of_step(weights, done - 1), support.x)

    def outer_loss(self, episode: Episode) -> Tensor:
        """Sum of v_i L(theta_i) over the steps (Eq. 3), where v falls to the last step alone as training goes on.

        Args:
            episode: one episode.

        Returns:
            A scalar.
        """
        support, query = episode
        n = self.n_steps()
        done = known(self.outer_steps)
        last_only = not self.training or n == 1 or (done is not None and done >= self.multi_step_steps)
        steps = unrolled(self.support_loss, self.start(support), support, self.inner(n), every=not last_only)
        at = list(enumerate(steps, -1))[1:] if not last_only else [(n - 1, next(steps))]
        losses, buffers = [], at[-1][1].buffers
        for i, weights in at:
            one = self.with_statistics(self._of_step(weights, i), support.x)
            prediction, after = self.run(one, query.x)
            losses.append(task_loss(prediction, query.y))
            buffers = self._kept(buffers, after.buffers, i)
        self.keep_buffers(Weights({}, buffers))
        if self.training:
            self.outer_steps = self.outer_steps + 1
        v = 1.0 if last_only else importance(n, self.outer_steps - 1, self.multi_step_steps).to(losses[0])
        return (torch.stack(losses) * v).sum()

    def fused_losses(self, episodes: Episode) -> Tensor:
        """Take the same losses by compiled kernels.

        Args:
            episodes: T episodes.

        Returns:
            (T,) losses.
        """
        done = self.outer_steps
        losses = super().fused_losses(episodes)
        self.outer_steps = done + 1
        return losses

    def step_weights(self) -> Tensor:
        """Weigh the losses after the inner steps as annealing has it.

        Returns:
            v (S,).
        """
        return importance(self.n_steps(), self.outer_steps, self.multi_step_steps)

    def _of_step(self, weights: Weights, step: int) -> Weights:
        i = min(max(step, 0), self.n_inner_steps - 1)
        params, buffers = ({k: t[i] if k in self.per_step else t for k, t in named.items()} for named in weights)
        return Weights(params, buffers)

    def _kept(self, all_steps: Named, of_step: Named, step: int) -> Named:
        i = min(step, self.n_inner_steps - 1)

        def kept(whole: Tensor, new: Tensor) -> Tensor:
            return torch.cat([whole[:i], new.unsqueeze(0), whole[i + 1 :]])

        return {k: kept(t, of_step[k]) if k in self.per_step else of_step[k] for k, t in all_steps.items()}


def importance(n_steps: int, outer_step: Tensor, multi_step_steps: int) -> Tensor:
    """Weigh the losses after the inner steps (v in Eq. 3): alike at first, in the end the last alone.

    Args:
        n_steps: N.
        outer_step: outer steps done, a scalar.
        multi_step_steps: outer steps until the last counts alone.

    Returns:
        v (N,), whose sum is 1.
    """
    share = 1 - outer_step / max(multi_step_steps, 1)
    early = torch.where(outer_step < multi_step_steps, share.clamp(min=LEAST) / n_steps, 0.0)
    return torch.cat([early.expand(n_steps - 1), (1 - (n_steps - 1) * early).reshape(1)])
