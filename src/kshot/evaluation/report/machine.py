"""A learner on a sequence, as panels one below the other: time runs to the right in all of them.

What is read and asked, what is answered, and for learners that tell (``trace``) what they write, where they write it,
what they read back and from where: the figures 6, 9 and 12 of Neural Turing Machines (arXiv:1410.5401).
"""

from __future__ import annotations

from html import escape

from kshot.evaluation.pictures import ReadingPicture
from kshot.evaluation.report.axes import nice_ticks, svg
from kshot.evaluation.report.panels import Panel, Shown, length, panels
from kshot.evaluation.report.pixels import data_address

LEFT, RIGHT, TOP, GAP, WIDEST = 118.0, 8.0, 24.0, 9.0, 800.0
#: Height of the axis of steps.
AXIS = 24.0


def step_width(picture: Shown) -> float:
    """Choose how wide a step is.

    Args:
        picture: of a sequence, or of an episode that was read as one.

    Returns:
        Its width, smaller where there are many.
    """
    widest = 22.0 if isinstance(picture, ReadingPicture) else 14.0
    return min(widest, (WIDEST - LEFT - RIGHT) / length(picture))


def machine(picture: Shown, *, details: bool = True) -> str:
    """Draw a sequence.

    Args:
        picture: of a sequence, or of an episode that was read as one.
        details: with what the learner did, where it told.

    Returns:
        An SVG element.
    """
    cell, n_steps = step_width(picture), length(picture)
    width, at, parts = LEFT + RIGHT + cell * n_steps, TOP, []
    for panel in panels(picture, cell, details=details):
        parts.append(_drawn(panel, at, cell))
        at += panel.height + GAP
    split = LEFT + cell * picture.n_read
    ends = (LEFT, split, LEFT + cell * n_steps)
    heads = "".join(
        f'<text class="tick" x="{(a + b) / 2:.1f}" y="12" text-anchor="middle">{name}</text>'
        for name, a, b in zip(parts_of(picture), ends[:-1], ends[1:], strict=True)
        if b - a >= 30
    )
    rule = f'<path class="split" d="M{split:.1f} 4V{at - GAP:.1f}"/>'
    axis = "".join(_tick(step, at - GAP, cell) for step in ticks(n_steps))
    axis += f'<text class="tick" x="{LEFT - 10:g}" y="{at - GAP + 17:.1f}" text-anchor="end">step</text>'
    made = svg(max(width, 300), at - GAP + AXIS, heads + "".join(parts) + rule + axis, described(picture))
    return made.replace('class="chart"', f'class="chart machine" style="max-width:{max(width, 300):.0f}px"', 1)


def parts_of(picture: Shown) -> tuple[str, str]:
    """Name the two parts of a sequence.

    Args:
        picture: of a sequence, or of an episode that was read as one.

    Returns:
        What the steps before the line are called, and those behind it.
    """
    return ("support", "queries") if isinstance(picture, ReadingPicture) else ("read", "asked")


def described(picture: Shown) -> str:
    """Say in words what is seen.

    Args:
        picture: of a sequence, or of an episode that was read as one.

    Returns:
        A line.
    """
    if isinstance(picture, ReadingPicture):
        asked = picture.right[picture.n_read :]
        return (
            f"{picture.title}: {picture.n_read} examples of the support read, "
            f"{int(asked.sum())} of {len(asked)} queries right"
        )
    return (
        f"{picture.title}: {picture.n_read} steps read, {len(picture.target)} asked, "
        f"{picture.cost:.3g} bits, {picture.wrong} of {picture.target.numel()} bits wrong"
    )


def ticks(n_steps: int) -> list[int]:
    """Choose the steps that are numbered.

    Args:
        n_steps: L.

    Returns:
        Numbers of 1..L.
    """
    if n_steps == 1:
        return [1]
    return [1, *(int(t) for t in nice_ticks(1, n_steps, 6) if t == int(t) and t > max(1, n_steps / 20))]


def _tick(step: int, top: float, cell: float) -> str:
    at = LEFT + cell * (step - 0.5)
    return (
        f'<path class="base" d="M{at:.1f} {top:.1f}v4"/>'
        f'<text class="tick" x="{at:.1f}" y="{top + 17:.1f}" text-anchor="middle">{step}</text>'
    )


def _drawn(panel: Panel, top: float, cell: float) -> str:
    left, width, height = LEFT + cell * panel.first, cell * panel.n_steps, panel.height
    box = f'x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}"'
    looks = f' class="{"photo" if panel.photo else "smooth"}"' if panel.per_step > 1 else ""
    image = f'<image{looks} {box} preserveAspectRatio="none" href="{data_address(panel.pixels)}"/>'
    marks = "".join(
        f"M{left + cell * column:.2f} {top + panel.row * row:.2f}h{cell:.2f}v{panel.row:.2f}h{-cell:.2f}Z"
        for row, column in panel.missed.tolist()
    )
    missed = f'<path class="{"miss" if cell >= 6 else "miss fine"}" d="{marks}"/>' if marks else ""
    middle = top + height / 2
    lines = written(panel)
    text = "".join(
        f'<text class="{"label" if i == 0 else "tick"}" x="{LEFT - 10:g}" text-anchor="end" '
        f'y="{middle + 4 + 13 * (i - (len(lines) - 1) / 2):.1f}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return f'{text}<rect class="ground" {box}/>{image}{missed}<rect class="box" {box}/>'


def written(panel: Panel) -> list[str]:
    """Write what stands beside a panel.

    Args:
        panel: the panel.

    Returns:
        Its name, and its remark in lines that fit, as far as the panel is tall enough.
    """
    remark: list[str] = []
    for word in panel.remark.split():
        if remark and len(remark[-1]) + len(word) < 18:
            remark[-1] += f" {word}"
        else:
            remark.append(word)
    return [panel.name, *remark][: max(1, int(panel.height // 13))] if panel.height >= 26 else [panel.name]
