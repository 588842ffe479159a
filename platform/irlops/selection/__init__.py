"""Choosing one of N candidate solutions. An offline number and an online answer come from these very lines."""

from irlops.contracts.evaluation import Calibration
from irlops.selection.aggregation import aggregate
from irlops.selection.candidates import Candidate
from irlops.selection.selectors import Agree, Selection, select
from irlops.selection.stopping import is_settled

__all__ = ["Agree", "Calibration", "Candidate", "Selection", "aggregate", "is_settled", "select"]
