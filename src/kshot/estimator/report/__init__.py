"""Self-contained HTML reports of a fitted model: ``write_model_report(model, path)``."""

from kshot.estimator.report.page import render_subject, write_model_report
from kshot.estimator.report.subject import NewExamples, Subject, subject_of

__all__ = ["NewExamples", "Subject", "render_subject", "subject_of", "write_model_report"]
