"""How good, and how sure: evaluation, metrics, intervals, records, reports. Knows the protocol, no method by name."""

from kshot.evaluation.evaluate import accuracy_by_shots, accuracy_by_step, check_fits, evaluate, evaluating
from kshot.evaluation.gather import gather
from kshot.evaluation.history import History, read_history
from kshot.evaluation.instances import Instances, accuracy_by_instance
from kshot.evaluation.pictures import Pictures
from kshot.evaluation.provenance import commit, environment
from kshot.evaluation.record import Record, read_record, record_of, scores_of
from kshot.evaluation.report import ReportInput, RunReport, render, write_report
from kshot.evaluation.scores import Curve, Scores, compare, higher_is_better
from kshot.evaluation.statistics import Comparison, Estimate, mean_ci95, over_seeds, paired

__all__ = [
    "Comparison",
    "Curve",
    "Estimate",
    "History",
    "Instances",
    "Pictures",
    "Record",
    "ReportInput",
    "RunReport",
    "Scores",
    "accuracy_by_instance",
    "accuracy_by_shots",
    "accuracy_by_step",
    "check_fits",
    "commit",
    "compare",
    "environment",
    "evaluate",
    "evaluating",
    "gather",
    "higher_is_better",
    "mean_ci95",
    "over_seeds",
    "paired",
    "read_history",
    "read_record",
    "record_of",
    "render",
    "scores_of",
    "write_report",
]
