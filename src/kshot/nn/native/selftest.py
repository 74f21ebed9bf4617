"""A small known answer that a new library must give: compilers have bugs, and wrong numbers look like numbers.

PyTorch computes it in float64, and the library must agree to rounding.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from kshot.nn.native.design import EPS, Design
from kshot.nn.native.kernels import Inner, Kernel, Labelled, maml_run, trunk_backward, trunk_forward

WAYS = 2
# Gradients in float32 may rightly differ more, where two pixels of a pooling window are nearly equal.
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-4, 1e-2)}  # values, gradients
RATE = 0.1


def failure(library: ctypes.CDLL, dtype: torch.dtype, design: Design) -> str:
    """Compare the library with PyTorch on a small case.

    Args:
        library: as loaded.
        dtype: its type of number.
        design: what it was compiled for.

    Returns:
        What is wrong; "" if nothing is.
    """
    # The first call may come from within vmap, to which all this is of no concern.
    with temporarily_clear_interpreter_stack(), torch.inference_mode(False), torch.enable_grad():
        parameters, images = _case(design)
        expected = _expected(parameters, images, design.pools)
        got = _got(library, design, [p.detach().to(dtype) for p in parameters], images.to(dtype))
    for name, value in got.items():
        error = float((value.double() - expected[name]).norm() / expected[name].norm())
        if not error < TOLERANCE[dtype]["gradient" in name]:
            return f"{name} in {dtype}: relative error {error:.1e}"
    return ""


def _case(design: Design) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    parameters = []
    for shape in (*design.shapes, (WAYS, design.n_features), (WAYS,)):
        fan_in = max(1, torch.Size(shape[1:]).numel())
        parameters.append(torch.randn(shape, generator=g, dtype=torch.float64) * (2 / fan_in) ** 0.5)
    return [p.requires_grad_() for p in parameters], torch.rand(
        2, 4, *design.image_shape, generator=g, dtype=torch.float64
    )


def _examples(images: Tensor) -> tuple[Labelled, Labelled]:
    # One task: the first two images of each group are its support, the others its queries.
    x = images.flatten(0, 1).unsqueeze(0)
    y = torch.tensor([[0, 1, 1, 0]])
    return Labelled(x[:, :4], y), Labelled(x[:, 4:], y)


def _embed(parameters: list[Tensor], x: Tensor, pools: int) -> Tensor:
    for block, (w, *affine) in enumerate(zip(parameters[:4], parameters[4:8], parameters[8:12], strict=True)):
        x = F.relu(F.batch_norm(F.conv2d(x, w, padding=1), None, None, *affine, training=True, eps=EPS))
        x = F.max_pool2d(x, 2) if block < pools else x
    return x.flatten(1)


def _expected(parameters: list[Tensor], images: Tensor, pools: int) -> dict[str, Tensor]:
    features = torch.stack([_embed(parameters, group, pools) for group in images])
    by_trunk = torch.autograd.grad(features.square().sum(), parameters[:12])
    support, query = _examples(images)

    def loss(theta: list[Tensor], part: Labelled) -> Tensor:
        return F.cross_entropy(F.linear(_embed(theta, part.x[0], pools), *theta[12:]), part.y[0])

    step = torch.autograd.grad(loss(parameters, support), parameters, create_graph=True)
    adapted = [p - RATE * g for p, g in zip(parameters, step, strict=True)]
    outer = loss(adapted, query)
    by_maml = torch.autograd.grad(outer, parameters)
    return {
        "features": features.detach(),
        "trunk gradient": _flat(by_trunk),
        "MAML loss": outer.detach().view(1),
        "MAML gradient": _flat(by_maml),
    }


def _got(library: ctypes.CDLL, design: Design, parameters: list[Tensor], images: Tensor) -> dict[str, Tensor]:
    kernel = Kernel(library, "trunk")
    flat = _flat(parameters[:12])
    features, _, _ = trunk_forward(kernel, design, flat, images, threads=2)
    by_trunk = trunk_backward(kernel, 2 * features, len(flat))
    support, query = _examples(images)
    theta = _flat(parameters)
    inner = Inner(torch.full_like(theta, RATE).unsqueeze(0), theta.new_ones(1), first_order=False)
    found = maml_run(Kernel(library, "maml"), theta, WAYS, support, query, inner, threads=1)
    by_maml = {"MAML loss": found.losses, "MAML gradient": found.parameters}
    return {"features": features, "trunk gradient": by_trunk, **by_maml}


def _flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
