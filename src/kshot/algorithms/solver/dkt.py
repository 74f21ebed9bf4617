"""Deep kernel transfer: a Gaussian process on a task's embeddings, its kernel and embedding shared by all tasks.

Paper: Massimiliano Patacchiola, Jack Turner, Elliot Crowley, Michael O'Boyle, Amos Storkey, "Bayesian Meta-Learning for
the Few-Shot Setting via Deep Kernels", NeurIPS 2020, arXiv:1910.05199.

Idea: no inner loop: what is learned is the marginal likelihood of whole tasks, and a new task is conditioned on.

======================  ==============================================
paper                   here
======================  ==============================================
F_phi                   ``backbone``
k(x, x' | theta, phi)   ``kernel`` of the embeddings; theta is ``log_variance``, ``log_length``, ``mean``
sigma^2                 ``exp(log_noise)``
P(T^y | T^x)            marginal likelihood of support and queries together: the outer loss
E[f*], cov(f*)          ``predictive``; ``predict`` is E[f*] in regression, log odds in classification
======================  ==============================================

Differs from the paper: in classification all classes share one set of kernel parameters, where the authors' code has
one for each place of a class; so the names of the classes do not matter. That code also holds the noise at 0.1 in
classification, where it is learned here, and gives its batch norm before the cosines ("bncossim") a scale and a shift.
The loss is divided by the number of examples. In classification the paper goes by the largest mean alone, and its code
hands the means to a sigmoid; here the logits are 2 * mean / variance, the log odds of what the model itself says: were
the query of class c, its targets would be +1 there and -1 elsewhere, under the Gaussians predicted for it. One variance
serves all classes, so that the answer is the same and only its probability is another. A softmax of bare means would
lie near chance however sure the model is (calibration error 0.46 at 5-way 1-shot on Omniglot).

Checked by: tests/reference/test_solvers.py (densities of SciPy's multivariate normal; conditioning by block inverses;
probabilities by Bayes' rule), tests/algorithms/test_dkt.py (their calibration).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Spec, Tree, UserError, register
from kshot.engine.embedding import EmbeddingLearner, Labelled, TaskHead, embed_queries
from kshot.nn.heads import memberships, squared_distances, unit
from kshot.nn.solvers import cholesky

KERNELS = ("bncossim", "cosine", "linear", "rbf")
#: Added to variances, as batch norms do; and how slowly running statistics forget.
_EPS, _MOMENTUM = 1e-5, 0.1


class Conditioned(NamedTuple):
    """A Gaussian process that has seen a support.

    Attributes:
        z: embedded support (S, D), normalised where the kernel says so.
        factor: Cholesky factor of the covariance of its targets (S, S).
        weights: that covariance's inverse times the centred targets (S, O).
        ways: W, or 0 for regression.
    """

    z: Tensor
    factor: Tensor
    weights: Tensor
    ways: int


@register(
    "dkt",
    family="solver",
    paper="Patacchiola, Turner, Crowley, O'Boyle, Storkey, Bayesian Meta-Learning for the Few-Shot Setting via Deep "
    "Kernels, NeurIPS 2020, arXiv:1910.05199",
)
class DKT(EmbeddingLearner):
    """Deep kernel transfer; classification is regression on +1 and -1, one class against the rest.

    Args:
        backbone: maps (N, ...) to embeddings (N, D).
        kernel: "bncossim" (cosines of features that a batch norm has seen), "cosine", "linear", or "rbf" (for
            regression).

    Raises:
        UserError: unknown kernel.
    """

    kinds = ("classification", "regression")
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, backbone: nn.Module, *, kernel: Literal["bncossim", "cosine", "linear", "rbf"] = "bncossim"
    ) -> None:
        super().__init__(backbone)
        if kernel not in KERNELS:
            raise UserError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}; choose one")
        self.kernel = kernel
        self.log_variance, self.mean = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.log_noise = nn.Parameter(torch.tensor(math.log(0.1)))
        if kernel == "rbf":
            self.log_length = nn.Parameter(torch.zeros(()))
        if kernel == "bncossim":
            width = getattr(backbone, "n_features", 1)
            self.register_buffer("running_mean", torch.zeros(width))
            self.register_buffer("running_var", torch.ones(width))

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the paper's kernels.

        Args:
            spec: what the tasks look like.

        Returns:
            "rbf" for regression; else the authors' best, "bncossim", which is the default.
        """
        return {"kernel": "rbf"} if spec.kind == "regression" else {}

    def watch(self, z: Tensor) -> None:
        """Average the statistics of training tasks into the running ones.

        Args:
            z: (N, D), or (T, N, D) of T tasks.
        """
        if self.kernel != "bncossim":
            return
        tasks = z.reshape(-1, *z.shape[-2:])
        self.running_mean = torch.lerp(self.running_mean, tasks.mean((0, 1)), _MOMENTUM)
        self.running_var = torch.lerp(self.running_var, tasks.var(1, correction=0).mean(0), _MOMENTUM)

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariance of the function's values at two sets of embeddings.

        Args:
            a: (N, D), normalised where the kernel says so.
            b: (M, D).

        Returns:
            (N, M).
        """
        if self.kernel in ("bncossim", "cosine"):
            return self.log_variance.exp() * (unit(a) @ unit(b).mT)
        if self.kernel == "linear":
            return self.log_variance.exp() * (a @ b.mT)
        apart = squared_distances(a, b).clamp(min=0)
        return (self.log_variance - apart / 2 * torch.exp(-2 * self.log_length)).exp()

    def fit_head(self, support: Labelled) -> Conditioned:
        """Condition on the support.

        Args:
            support: the embedded support.

        Returns:
            What predictions need.
        """
        z = self._by_running(support.z)
        factor = self._factor(z)
        return Conditioned(z, factor, torch.cholesky_solve(self._targets(support), factor), support.ways)

    def apply_head(self, head: Conditioned, z: Tensor) -> Tensor:
        """Return log probabilities of the classes, up to a constant, or predictive means.

        Args:
            head: from ``fit_head``.
            z: (Q, D).

        Returns:
            Logits (Q, W), or means (Q, O).
        """
        mean, variance = self._posterior(head, self._by_running(z))
        # Of N(+1; m_c, v) for a class c and N(-1; m_k, v) for all others, what differs from class to class.
        return 2 * mean / variance.unsqueeze(-1) if head.ways else mean

    def predictive(self, state: TaskHead, x: Tree) -> tuple[Tensor, Tensor]:
        """Answer queries with a variance.

        Args:
            state: from ``adapt``.
            x: inputs (Q, ...).

        Returns:
            Means (Q, W) or (Q, O), and (Q,) variances of a new observation, the noise included: they depend on the
            inputs alone and so are the same for all outputs.
        """
        return self._posterior(state.head, self._by_running(embed_queries(self.backbone, state.buffers, x)))

    def _posterior(self, head: Conditioned, z: Tensor) -> tuple[Tensor, Tensor]:
        across = self.covariance(head.z, z)
        half = torch.linalg.solve_triangular(head.factor, across, upper=False)
        prior = self.covariance(z.unsqueeze(1), z.unsqueeze(1)).flatten()
        # Rounding must not leave less than the noise, by which classification divides.
        variance = (prior - (half * half).sum(0)).clamp(min=0) + self.log_noise.exp()
        return across.mT @ head.weights + self.mean, variance

    def head_loss(self, support: Labelled, query: Labelled) -> Tensor:
        """Minus the log marginal likelihood of support and queries together, for each example.

        While training, "bncossim" normalises by the statistics of these examples.

        Args:
            support: embedded support.
            query: embedded queries.

        Returns:
            A scalar.
        """
        z = torch.cat([support.z, query.z])
        if self.training and self.kernel == "bncossim":
            z = _normalised(z, z.mean(0), z.var(0, correction=0))
        else:
            z = self._by_running(z)
        whole = Labelled(z, torch.cat([support.y, query.y]), support.ways)
        targets, factor = self._targets(whole), self._factor(whole.z)
        fit = torch.linalg.solve_triangular(factor, targets, upper=False).square().sum()
        n, n_outputs = targets.shape
        volume = 2 * factor.diagonal().log().sum() + n * math.log(2 * math.pi)
        return (fit + n_outputs * volume) / (2 * n)

    def _by_running(self, z: Tensor) -> Tensor:
        return _normalised(z, self.running_mean, self.running_var) if self.kernel == "bncossim" else z

    def _targets(self, examples: Labelled) -> Tensor:
        y = examples.y if not examples.ways else 2 * memberships(examples.y, examples.ways, examples.z.dtype) - 1
        return y - self.mean

    def _factor(self, z: Tensor) -> Tensor:
        eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
        return cholesky(self.covariance(z, z) + self.log_noise.exp() * eye)


def _normalised(z: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (z - mean) * torch.rsqrt(variance + _EPS)
