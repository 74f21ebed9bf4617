"""CAVIA: only a few context parameters adapt; the network is shared by all tasks.

Paper: Luisa Zintgraf, Kyriacos Shiarlis, Vitaly Kurin, Katja Hofmann, Shimon Whiteson, "Fast Context Adaptation via
Meta-Learning", ICML 2019, arXiv:1810.03642.

Idea: tell tasks apart by a short vector that is one more input of the network, find it by gradient steps from zero, and
learn the network so that this vector is enough.

======================  ==============================================
paper                   here
======================  ==============================================
phi                     ``Context.phi``, starts at 0 (section 3.1)
theta                   ``model`` and ``modulation``, never adapted
alpha                   ``inner_lr``
h_i + sum theta phi     ``modulation`` of a linear layer (Eq. 5)
gamma, beta             ``modulation`` of channels (FiLM, section 3.4)
======================  ==============================================

Differs from the paper: none known for the sinusoid, where phi is concatenated to the input of the first layer, which is
the same as adding a linear function of phi to its output. For images FiLM stands behind the third convolution and its
normalisation, before the pooling, as h * (1 + scale) + shift, both linear in phi without a bias, so that phi = 0 leaves
the network as it is; the authors' code has gamma * h + beta with biases, behind the pooling. A network in which neither
is found takes the name of a layer.

Checked by: tests/reference/test_gradient_family.py (plain loops, phi concatenated to the input),
tests/algorithms/test_gradient_family.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from kshot.core import Spec, Split, Tree, UserError, register
from kshot.engine.inner import Inner, InnerLoop, Weights, call, check_rate, weights_of
from kshot.nn.norm import Norm

CONTEXT = "context"


class Place(NamedTuple):
    """Where the context enters a network.

    Attributes:
        layer: name of the linear layer or convolution whose output is changed.
        n_channels: length of that output.
        per_channel: True for maps (N, C, H, W), which are scaled and shifted; False for vectors, which are shifted.
        norm: name of a normalisation that may stand right behind the layer, whose output is changed then; "" for none.
    """

    layer: str
    n_channels: int
    per_channel: bool
    norm: str = ""


@register(
    "cavia",
    family="gradient",
    paper="Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, Fast Context Adaptation via Meta-Learning, ICML 2019, "
    "arXiv:1810.03642",
)
class CAVIA(InnerLoop):
    """Fast context adaptation.

    Args:
        model: any network that maps (N, ...) to logits (N, W), or to means (N, O).
        n_context: length of phi; 4 on the sinusoid, 100 for images.
        inner_lr: alpha; 1 in the paper.
        n_inner_steps: gradient steps while training; 1 on the sinusoid, 2 for images.
        n_inner_steps_eval: gradient steps when evaluating, 0 for as many as in training.
        layer: name of the layer (linear or convolution) that the context enters; "" for the paper's place.
        first_order: leave the second derivatives out.
        truncate: inner steps, the last ones, that the outer gradient runs through; 0 for all.

    Raises:
        UserError: a number that makes no sense, or no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        n_context: int = 100,
        inner_lr: float = 1.0,
        n_inner_steps: int = 2,
        n_inner_steps_eval: int = 0,
        layer: str = "",
        first_order: bool = False,
        truncate: int = 0,
    ) -> None:
        super().__init__(model, n_inner_steps, n_inner_steps_eval, truncate)
        check_rate("inner_lr", inner_lr)
        if n_context < 1:
            raise UserError(f"expected n_context >= 1, got {n_context}; 4 is enough for a sinusoid")
        self.inner_lr, self.n_context, self.first_order = inner_lr, n_context, first_order
        self.place = find_place(model, layer)
        n_values = self.place.n_channels * (2 if self.place.per_channel else 1)
        self.modulation = nn.Linear(n_context, n_values, bias=False)

    @classmethod
    def paper_options(cls, spec: Spec) -> dict[str, Any]:
        """Return the paper's settings for tasks like these.

        Args:
            spec: what the tasks look like.

        Returns:
            Those of the sinusoid (section 5.1); the defaults are those of images (section 5.2).
        """
        return {"n_context": 4, "n_inner_steps": 1} if spec.kind == "regression" else {}

    def inner(self, n_steps: int) -> Inner:
        """Step the context alone: phi <- phi - alpha * grad_phi L (Eq. 3).

        Args:
            n_steps: number of steps.

        Returns:
            The settings.
        """
        return Inner(self.inner_lr, n_steps, first_order=self.first_order, adapted=(CONTEXT,), truncate=self.truncate)

    def start(self, support: Split) -> Weights:
        """Start from phi = 0.

        Args:
            support: x (S, ...), y (S,) int64 or (S, O).

        Returns:
            The network, the modulation and the context.
        """
        theta, own = weights_of(self.model), self.modulation.weight
        return Weights({**theta.params, "modulation": own, CONTEXT: own.new_zeros(self.n_context)}, theta.buffers)

    def run(self, weights: Weights, x: Tree) -> tuple[Tensor, Weights]:
        """Run the network under a context.

        Args:
            weights: as ``start`` gives them.
            x: inputs (N, ...).

        Returns:
            The output, and the weights with the buffers as the forward pass left them.

        Raises:
            UserError: the layer that the context enters was not called.
        """
        params = dict(weights.params)
        values = params.pop("modulation") @ params.pop(CONTEXT)
        layer = self.model.get_submodule(self.place.layer)
        norm = self.model.get_submodule(self.place.norm) if self.place.norm else None
        called: list[nn.Module] = []

        def modulate(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            called.append(module)
            # What normalises first stands before the layer, and not behind it.
            if module is (norm if norm is not None and called[0] is layer else layer):
                return self._modulated(output, values)
            return output

        hooks = [m.register_forward_hook(modulate) for m in (layer, norm) if m is not None]
        try:
            prediction, after = call(self.model, Weights(params, weights.buffers), x)
        finally:
            for hook in hooks:
                hook.remove()
        if layer not in called or (norm is not None and norm not in called):
            raise UserError(
                f"expected the network to call its layer {self.place.layer!r}"
                + (f" and what normalises it, {self.place.norm!r}" if self.place.norm else "")
                + ", it did not; name another layer"
            )
        return prediction, Weights(weights.params, after.buffers)

    def _modulated(self, output: Tensor, values: Tensor) -> Tensor:
        if not self.place.per_channel:
            return output + values
        scale, shift = values.view(2, -1, 1, 1)
        return output * (1 + scale) + shift


def find_place(model: nn.Module, layer: str = "") -> Place:
    """Find where the context enters: the first linear layer, or the third convolution (or last, where there are fewer).

    A normalisation right behind the layer would cancel what is added before it, so the place is then behind that.

    Args:
        model: the network.
        layer: name of a linear layer or convolution; "" to find one.

    Returns:
        The place.

    Raises:
        UserError: there is none of that name, or none at all.
    """
    modules = dict(model.named_modules())
    convolutions = [k for k, m in modules.items() if isinstance(m, nn.Conv2d)]
    # PyTorch's attention holds the weights of its last layer in a module that it never calls.
    uncalled = nn.modules.linear.NonDynamicallyQuantizableLinear
    linear = [k for k, m in modules.items() if isinstance(m, nn.Linear) and not isinstance(m, uncalled)]
    name = layer or (convolutions[:3][-1] if convolutions else linear[0] if linear else "")
    if name not in (*convolutions, *linear):
        raise UserError(
            f"expected the name of a linear layer or convolution, got {name!r}; those of this network are "
            f"{', '.join([*convolutions, *linear]) or 'none'}"
        )
    found = modules[name]
    size = found.out_channels if isinstance(found, nn.Conv2d) else found.out_features
    names = list(modules)
    after = next(iter(names[names.index(name) + 1 :]), name)
    normalises = isinstance(modules[after], Norm | nn.modules.batchnorm._BatchNorm | nn.LayerNorm)
    return Place(name, int(size), isinstance(found, nn.Conv2d), after if normalises else "")  # pyright: ignore[reportArgumentType]
