"""Self-contained HTML reports: ``write_report(path, ReportInput([RunReport(...), ...]))``."""

from kshot.evaluation.report.inputs import ReportInput, RunReport
from kshot.evaluation.report.page import render, write_report

__all__ = ["ReportInput", "RunReport", "render", "write_report"]
