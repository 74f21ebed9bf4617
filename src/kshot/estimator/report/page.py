"""The report of a fitted model as one HTML file: no network, light and dark, bounded in size whatever the model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.core.files import write_atomically
from kshot.estimator.report import classes, confidence, maps, shots, wording
from kshot.estimator.report.subject import Subject, subject_of

if TYPE_CHECKING:
    from kshot.estimator.classifier import FewShotClassifier
    from kshot.estimator.regressor import FewShotRegressor


def write_model_report(
    model: FewShotClassifier | FewShotRegressor, path: Path | str, *, X: Any = None, y: Any = None
) -> None:
    """Write a report of what a model knows, how well, and which of its shots to look at.

    Args:
        model: fitted.
        path: the HTML file to write.
        X: new examples to judge in the report, such as a test set; None for none.
        y: their labels, of the model's classes or others, which then count as of no class, or their targets; None
            where unknown.

    Raises:
        UserError: the model is not fitted, an example cannot be read, or the file cannot be written.
    """
    from kshot.estimator.regressor import FewShotRegressor

    if isinstance(model, FewShotRegressor):
        from kshot.estimator.report import numbers

        page = _template("numbers.html.j2").render(numbers.views(numbers.number_subject(model, X, y)))
    else:
        page = render_subject(subject_of(model, X, y))
    write_atomically(Path(path), page)


def render_subject(subject: Subject) -> str:
    """Make the report's HTML.

    Args:
        subject: what it shows.

    Returns:
        A whole HTML document that refers to nothing outside itself.
    """
    view: dict[str, Any] = {
        "title": wording.title(subject),
        "introduction": wording.introduction(subject),
        "headlines": wording.headlines(subject),
        "remarks": wording.remarks(subject),
        "new": shots.new_examples(subject),
        "doubts": shots.doubts(subject),
        "duplicates": shots.duplicates(subject),
        "classes": classes.table(subject),
        "confusion": classes.confusion(subject),
        "reliability": confidence.reliabilities(subject),
        "unknown": confidence.unknown(subject),
        "heads": confidence.heads(subject),
        "pictured": any(isinstance(seen, bytes) and seen for seen in subject.looks),
        "map": maps.embedding_map(subject),
        "facts": wording.facts(subject),
    }
    return _template("model.html.j2").render(view)


def _template(name: str) -> Any:
    # Imported here: `import kshot` stays quick for those who want no report.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("kshot.estimator.report", "templates"),
                jinja2.PackageLoader("kshot.evaluation.report", "templates"),
            ]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
