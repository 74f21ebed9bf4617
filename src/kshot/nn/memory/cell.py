"""What every recurrent cell offers: a state to start from, and one step. A scan runs it along a sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from kshot.nn import native

#: Where the state of a cell keeps the number of its rows.
ROWS = "n_slots"

S = TypeVar("S", bound=tuple[Any, ...])


class Cell(nn.Module, ABC, Generic[S]):
    """A recurrent network of one step. States are named tuples of tensors, so they pass through ``vmap``.

    Every tensor may have leading batch axes, written "..."; without any, it is one sequence.

    Attributes:
        n_inputs: I, width of the input of a step.
        n_features: F, width of what a step returns.
        rows_a_step: rows of memory that every step empties and writes; 0 where heads choose where they write.
    """

    n_inputs: int
    n_features: int
    rows_a_step: int = 0
    #: True where ``fused_scan`` keeps a small part of what the steps of ``scan`` would for their gradient.
    fused_is_lean: ClassVar[bool] = False

    @property
    def n_rows(self) -> int | None:
        """Rows of a memory beside the controller; None where there is none."""
        n = getattr(self, ROWS, None)
        return n if isinstance(n, int) else None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.n_rows is not None:
            # Most memories have no weights, so without this their size would be lost.
            destination[prefix + ROWS] = torch.tensor(self.n_rows)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # States of before this was kept have no number, and pass.
        rows = None if self.n_rows is None else state_dict.pop(prefix + ROWS, None)
        if rows is not None and int(rows) != self.n_rows:
            error_msgs.append(
                f"they are of a memory of {int(rows)} rows, expected {self.n_rows}: build it with n_slots={int(rows)}"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @abstractmethod
    def start(self, batch: tuple[int, ...] = ()) -> S:
        """Return the state before anything was read.

        Args:
            batch: the leading axes.

        Returns:
            The state, of the type and on the device of the parameters.
        """

    @abstractmethod
    def forward(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """Take one step.

        Args:
            x: (..., I).
            state: before.

        Returns:
            What is put out, (..., F), and the state after.
        """

    def step(self, x: Tensor, state: S) -> tuple[Tensor, S, dict[str, Tensor]]:
        """Take one step, and tell what was computed on the way.

        Args:
            x: (..., I).
            state: before.

        Returns:
            As ``forward``; and quantities by their names in words, in the order in which they were computed.
        """
        out, after = self(x, state)
        named = zip(getattr(after, "_fields", range(len(after))), after, strict=True)
        return out, after, {str(name).replace("_", " "): t for name, t in named}

    def pictured(self, did: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose what pictures of a step show, by names that all cells share.

        Args:
            did: what ``step`` told, of one sequence.

        Returns:
            Matrices with a row for each head (or layer): "write weightings" and "read weightings" (heads, N), "usage"
            (1, N), "add", "erase", "key" and "read" (heads, M), "hidden units" (layers, H); and "memory" (N, M). Those
            that there are.
        """
        return {}

    def scan(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """Read a sequence.

        Args:
            x: (L, ..., I), L steps.
            state: before.

        Returns:
            What each step put out, (L, ..., F), and the state after the last.
        """
        outputs = []
        for step in x:
            out, state = self(step, state)
            outputs.append(out)
        return torch.stack(outputs) if outputs else x.new_zeros(*x.shape[:-1], self.n_features), state

    def can_fuse(self) -> bool:
        """Tell whether a compiled kernel can run this very cell here.

        Returns:
            False for cells that have none.
        """
        return False

    def fused_scan(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """Read a batch of sequences by the fastest way there is: a compiled kernel if ``can_fuse``, else ``scan``.

        Args:
            x: (L, B, I).
            state: before, of B sequences.

        Returns:
            What ``scan`` returns; by a kernel it is differentiable once.
        """
        return self.scan(x, state)


def kernels_run(weight: Tensor) -> bool:
    """Tell whether compiled kernels can run a cell here.

    Args:
        weight: one of its parameters.

    Returns:
        True on a CPU with a C++ compiler, in float32 and float64; not within autocast.
    """
    return weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and native.available(weight.dtype)
