"""Networks made to be exported: what ``kshot.estimator.heads`` and others compute, as ``torch.nn.Module``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kshot.estimator.fit import Fit
from kshot.estimator.kernel_ridge import KernelRidge
from kshot.estimator.unknown import Metric


class Answer(nn.Module):
    """Inputs -> probabilities, and the p-value of belonging to any class where the shots can vouch for one.

    Args:
        network: inputs -> (N, D).
        fit: what was learnt of such vectors.
    """

    def __init__(self, network: nn.Module, fit: Fit) -> None:
        super().__init__()
        self.network = network
        weight, bias = fit.head.weight.double(), fit.head.bias.double()
        # What all classes share changes no probability, and costs digits.
        self.weight = _kept((weight - weight.mean(0)) / fit.temperature)
        self.bias = _kept((bias - bias.mean()) / fit.temperature)
        self.centre = _kept(fit.head.centre)
        self.strangeness = Strangeness(fit) if len(fit.reference) else None
        self.reference = _kept(fit.reference)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Answer.

        Args:
            *inputs: of the network.

        Returns:
            Probabilities (N, C), and p-values (N,) where there are any.
        """
        z = torch.nn.functional.normalize(self.network(*inputs), dim=-1)
        u = torch.nn.functional.normalize(z - self.centre, dim=-1)
        p = torch.softmax(u @ self.weight.T + self.bias, dim=-1)
        if self.strangeness is None:
            return (p,)
        at_least = (self.reference >= self.strangeness(u)[:, None]).to(p.dtype).sum(1)
        return p, (1 + at_least) / (len(self.reference) + 1)


class Strangeness(nn.Module):
    """Unit vectors -> relative Mahalanobis distance, see ``kshot.estimator.unknown``.

    Args:
        fit: with shots.
    """

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        known = fit.familiarity
        self.within, self.overall = Whiten(known.within), Whiten(known.overall)
        self.classes, self.mean = _kept(known.classes), _kept(known.mean)
        self.sizes = _kept(known.classes.double().square().sum(1))

    def forward(self, u: Tensor) -> Tensor:
        """Score.

        Args:
            u: (N, D).

        Returns:
            (N,).
        """
        w = self.within(u)
        near = (self.sizes - 2 * w @ self.classes.T).amin(1) + w.square().sum(1)
        return near - self.overall(u - self.mean).square().sum(1)


class Whiten(nn.Module):
    """Vectors -> vectors whose squared lengths are squared Mahalanobis distances.

    Args:
        metric: the distance.
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.rows = _kept(metric.spread.rows)
        self.inside = _kept((metric.a * metric.spread.values + metric.b).rsqrt())
        self.outside = 1 / math.sqrt(metric.b)

    def forward(self, x: Tensor) -> Tensor:
        """Whiten.

        Args:
            x: (N, D).

        Returns:
            (N, K + D).
        """
        inside = x @ self.rows.T
        return torch.cat([inside * self.inside, (x - inside @ self.rows) * self.outside], dim=1)


class Numbers(nn.Module):
    """Inputs -> predictions of kernel ridge regression, and how far targets are expected to lie from them.

    In double precision: targets may be large numbers that differ little.

    Args:
        network: inputs -> (N, D).
        fit: what was learnt of such vectors, see ``kshot.estimator.kernel_ridge``.
    """

    intercept: nn.Parameter
    corner: nn.Parameter
    noise: nn.Parameter
    size: nn.Parameter
    share: nn.Parameter
    length: nn.Parameter
    ridge: nn.Parameter

    def __init__(self, network: nn.Module, fit: KernelRidge) -> None:
        super().__init__()
        self.network, self.unit = network, fit.scale.unit
        # Plain numbers would become constants of single precision.
        named = {"intercept": fit.intercept, "corner": float(fit.edge[-1]), "noise": fit.noise, "size": fit.scale.size}
        for name, value in {**named, **fit.kernel._asdict()}.items():
            self.register_parameter(name, _kept(torch.tensor(value, dtype=torch.double), torch.double))
        self.centre, self.x = _kept(fit.scale.centre, torch.double), _kept(fit.x, torch.double)
        self.sizes = _kept(fit.x.square().sum(1), torch.double)
        self.inverse, self.edge = _kept(fit.inverse, torch.double), _kept(fit.edge[:-1], torch.double)
        self.weights = _kept(fit.weights, torch.double)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            *inputs: of the network.

        Returns:
            Predictions (N,) and deviations (N,), float64.
        """
        z = self.network(*inputs).double()
        x = ((torch.nn.functional.normalize(z, dim=-1) if self.unit else z) - self.centre) / self.size
        products, own = x @ self.x.T, x.square().sum(1)
        squares = (own[:, None] + self.sizes - 2 * products).clamp(min=0)
        k = self.share * products + (1 - self.share) * torch.exp(-squares / (2 * self.length.square()))
        h = k @ self.inverse + self.edge
        reach = (k * h).sum(1) + k @ self.edge + self.corner
        variance = self.share * own + (1 - self.share) + self.ridge - reach
        return k @ self.weights + self.intercept, (self.noise * variance.clamp(min=0)).sqrt()


class Quantiles(nn.Module):
    """Rows of a table -> normal scores, as ``kshot.apps.tables.TableEncoder`` makes them, and the lift of its rows.

    Args:
        state: of the encoder.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        widths = state["starts"].diff()
        kept = (widths > 0).nonzero().squeeze(1)
        longest = int(widths.max())
        knots = torch.full((len(kept), longest), torch.inf, dtype=torch.double)
        scores = torch.zeros(len(kept), longest, dtype=torch.double)
        for row, c in enumerate(kept.tolist()):
            part = slice(int(state["starts"][c]), int(state["starts"][c + 1]))
            knots[row, : int(widths[c])], scores[row, : int(widths[c])] = state["knots"][part], state["scores"][part]
        self.knots, self.scores = _kept(knots, torch.double), _kept(scores, torch.double)
        self.last = _kept(widths[kept] - 1, torch.long)
        self.kept, self.medians = _kept(kept, torch.long), _kept(state["medians"][kept], torch.double)
        self.flagged = _kept(state["flagged"].nonzero().squeeze(1), torch.long)
        self.lift = math.sqrt(len(kept) + len(self.flagged))

    def forward(self, rows: Tensor) -> Tensor:
        """Put rows on the scales.

        Args:
            rows: float64 (N, columns); NaN where a value is missing.

        Returns:
            float32 (N, D + 1).
        """
        missing = torch.isnan(rows)
        x = torch.where(missing[:, self.kept], self.medians, rows[:, self.kept])
        right = (self.knots <= x[..., None]).sum(-1)
        right = torch.minimum(right.clamp(min=1), self.last)[..., None]
        # Not ``len``, which fixes the number of rows when traced.
        knots, scores = (t.expand(rows.shape[0], -1, -1) for t in (self.knots, self.scores))
        low, high = knots.gather(2, right - 1).squeeze(-1), knots.gather(2, right).squeeze(-1)
        below, above = scores.gather(2, right - 1).squeeze(-1), scores.gather(2, right).squeeze(-1)
        # Halves of halves: the width of a gap may exceed the largest number.
        inside = torch.minimum(torch.maximum(x, low), high)
        share = (inside / 4 - low / 4) / (high / 4 - low / 4)
        score = below + share.clamp(0, 1) * (above - below)
        ones = torch.full_like(rows[:, :1], self.lift)
        return torch.cat([score, missing[:, self.flagged].to(score.dtype), ones], dim=1).float()


class Vectors(nn.Module):
    """Vectors -> themselves; stands where embeddings are made outside."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Pass on.

        Args:
            vectors: (N, D).

        Returns:
            The same.
        """
        return vectors + 0.0


class Lifted(nn.Module):
    """A network for rows of a table, and the lift of its vectors, see ``kshot.estimator.embedded.lift``.

    Args:
        network: (N, columns) -> (N, D).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        """Encode and lift.

        Args:
            rows: (N, columns).

        Returns:
            (N, D + 1).
        """
        z = self.network(rows)
        return torch.cat([z, torch.full_like(z[:, :1], math.sqrt(z.shape[1]))], dim=1)


def _kept(t: Tensor, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    # Parameters travel into the file as initialisers of that name; cloned, since those made in inference mode can't be.
    return nn.Parameter(t.detach().to("cpu", dtype).clone(), requires_grad=False)
