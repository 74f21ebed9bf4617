"""Peers, each used as its own documentation shows; only those that are installed take part."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kshot.bench.plain import task_loss
from kshot.core import Episode, UserError
from kshot.core.episode import unbind

MAML_PEERS = ("higher", "torchopt", "learn2learn", "metalearn")


def installed(name: str) -> bool:
    """Tell whether a peer is installed.

    Args:
        name: of its module.

    Returns:
        True if so.
    """
    return importlib.util.find_spec(name) is not None


class PngFolder(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Omniglot as PNG files in folders of alphabet and character, read one by one, as tutorials do.

    Args:
        folder: of alphabets.
        image_size: side in pixels.

    Raises:
        UserError: the folder holds no pictures.
    """

    def __init__(self, folder: Path, image_size: int = 28) -> None:
        classes = sorted(p for p in folder.glob("*/*") if p.is_dir())
        self.items = [(path, label) for label, c in enumerate(classes) for path in sorted(c.glob("*.png"))]
        if not self.items:
            raise UserError(f"expected alphabet/character/*.png below {folder}, found none")
        transforms = importlib.import_module("torchvision.transforms")
        self.transform = transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        with Image.open(path) as image:
            return self.transform(image.convert("L")), label

    def get_labels(self) -> list[int]:
        """List the class of every picture, which easyfsl's sampler asks for.

        Returns:
            The labels.
        """
        return [label for _, label in self.items]


def easyfsl_loop(
    backbone: nn.Module, folder: Path, *, n_way: int, n_shot: int, n_query: int, workers: int
) -> Callable[[], float]:
    """Make easyfsl's training step, with its own sampler, loader and ProtoNet.

    Args:
        backbone: the network.
        folder: of PNG files.
        n_way: W.
        n_shot: K.
        n_query: queries of each class.
        workers: processes of its loader.

    Returns:
        A function that trains on the next episode and returns its loss.
    """
    _mend_sampler()
    samplers = importlib.import_module("easyfsl.samplers")
    methods = importlib.import_module("easyfsl.methods")
    data = PngFolder(folder)
    sampler = samplers.TaskSampler(data, n_way, n_shot, n_query, n_tasks=10**6)
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=sampler, num_workers=workers, collate_fn=sampler.episodic_collate_fn
    )
    model = methods.PrototypicalNetworks(backbone).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    episodes: Iterator[Any] = iter(loader)

    def step() -> float:
        support_x, support_y, query_x, query_y, _ = next(episodes)
        optimiser.zero_grad()
        model.process_support_set(support_x, support_y)
        loss = F.cross_entropy(model(query_x), query_y)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _mend_sampler() -> None:
    # easyfsl 1.5.0 passes data_source to PyTorch's Sampler, whose constructor takes it no more.
    sampler = torch.utils.data.Sampler
    try:
        sampler(data_source=None)  # pyright: ignore[reportCallIssue]
    except TypeError:
        sampler.__init__ = lambda self, data_source=None: None  # pyright: ignore[reportAttributeAccessIssue]


def maml_step(name: str, model: nn.Module, episodes: Episode, inner_lr: float, n_inner_steps: int) -> Callable[[], Any]:
    """Make a peer's second-order MAML step.

    Args:
        name: one of ``MAML_PEERS``.
        model: the network; gradients gather in its parameters.
        episodes: T episodes.
        inner_lr: alpha.
        n_inner_steps: inner steps.

    Returns:
        A function that takes the outer gradient and returns name -> gradient.
    """
    if name == "metalearn":
        return _parallel_metalearn(model, episodes, inner_lr, n_inner_steps)
    task = {"higher": _higher, "torchopt": _torchopt, "learn2learn": _learn2learn}[name](model, inner_lr, n_inner_steps)
    n = episodes.support.y.shape[0]

    def step() -> dict[str, Tensor]:
        model.zero_grad()
        for episode in unbind(episodes):
            task(episode, 1 / n)
        return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    return step


def _higher(model: nn.Module, lr: float, steps: int) -> Callable[[Episode, float], None]:
    higher = importlib.import_module("higher")
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)

    def task(episode: Episode, share: float) -> None:
        with higher.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (fast, inner):
            for _ in range(steps):
                inner.step(task_loss(fast(episode.support.x), episode.support.y))
            (task_loss(fast(episode.query.x), episode.query.y) * share).backward()

    return task


def _torchopt(model: nn.Module, lr: float, steps: int) -> Callable[[Episode, float], None]:
    torchopt = importlib.import_module("torchopt")
    inner = torchopt.MetaSGD(model, lr=lr)

    def task(episode: Episode, share: float) -> None:
        net, opt = (
            torchopt.extract_state_dict(model, by="reference"),
            torchopt.extract_state_dict(inner, by="reference"),
        )
        for _ in range(steps):
            inner.step(task_loss(model(episode.support.x), episode.support.y))
        (task_loss(model(episode.query.x), episode.query.y) * share).backward()
        torchopt.recover_state_dict(model, net)
        torchopt.recover_state_dict(inner, opt)

    return task


def _learn2learn(model: nn.Module, lr: float, steps: int) -> Callable[[Episode, float], None]:
    algorithms = importlib.import_module("learn2learn.algorithms")
    maml = algorithms.MAML(model, lr=lr)

    def task(episode: Episode, share: float) -> None:
        fast = maml.clone()
        for _ in range(steps):
            fast.adapt(task_loss(fast(episode.support.x), episode.support.y))
        (task_loss(fast(episode.query.x), episode.query.y) * share).backward()

    return task


def _parallel_metalearn(model: nn.Module, episodes: Episode, lr: float, steps: int) -> Callable[[], dict[str, Tensor]]:
    # The package parallel-metalearn, whose module is called metalearn; it takes the whole batch of tasks.
    algorithms, loss, wrappers, inner = (
        importlib.import_module(f"metalearn.{name}")
        for name in ("algorithms.MAML", "loss.CEloss", "model_wrappers.MAMLWrapper", "inner_optimizers.optimizers")
    )

    class Wrapped(wrappers.MAML_Model):
        def forward(self, x: Tensor, **kwargs: Any) -> dict[str, Any]:
            return {"logits": self.backbone(x), "buffers": {}}

    net = Wrapped(model, nn.Identity())
    # A rate of zero keeps the weights where they are, so that every round computes the same gradient.
    maml = algorithms.MAML(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0),
        inner_optimizer=inner.InnerSGD(net.get_fast_weights(), inner_lr=lr, learn_lr=False),
        support_loss_fn=loss.CrossEntropy(metric_fn=lambda logits, y, mask: (logits.argmax(-1) == y).float().mean()),
        inner_steps=steps,
        device=torch.device("cpu"),
    )
    batch = (episodes.support.x, {"labels": episodes.support.y}, episodes.query.x, {"labels": episodes.query.y})

    def step() -> dict[str, Tensor]:
        maml.step(iter([batch]))
        return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    return step


def several(step: Callable[[], object], times: int) -> Callable[[], None]:
    """Repeat a step, so that one measurement is long enough to trust.

    Args:
        step: what to repeat.
        times: how often.

    Returns:
        A function that does so.
    """

    def run() -> None:
        for _ in range(times):
            step()

    return run
