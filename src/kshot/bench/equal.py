"""Contenders are timed only if they compute the same: by what bound, and what is said of those that do not."""

from __future__ import annotations

from kshot.core import UserError

#: Gradients in float32 are the same if they are apart by no more than this, relative, over all parameters. Rounding
#: alone was seen to give 0.7e-3 after one inner step on Conv4, and 1.4e-3 after five.
BOUND = 5e-3


def refuse_unequal(case: str, gap: float) -> None:
    """Refuse to time a step of kshot's that is not the plain loop's.

    Args:
        case: its name.
        gap: of kshot's gradient to the plain loop's, relative.

    Raises:
        UserError: the gap is above ``BOUND``, or no number.
    """
    if not gap <= BOUND:
        raise UserError(
            f"{case}: expected kshot's gradient within {BOUND:g} of the plain loop's, got {gap:.1e}; a step that "
            "computes something else is not worth timing, so please report it with the output of `kshot bench`"
        )


def unequal(gaps: dict[str, float]) -> dict[str, str]:
    """Say which contenders compute something else.

    Args:
        gaps: name -> relative gap of its gradient.

    Returns:
        Name -> note, of those whose gap is above ``BOUND``, or no number.
    """
    return {name: f"not equal: its gradient is {gap:.2g} off" for name, gap in gaps.items() if not gap <= BOUND}
