"""What a solution's final answer is, and whether two answers agree. Used by training, evaluation and the gateway alike."""

from irlops.answers.agreement import answers_agree, normalise_answer
from irlops.answers.extraction import AnswerRule, extract_answer, is_strictly_right

__all__ = ["AnswerRule", "answers_agree", "extract_answer", "is_strictly_right", "normalise_answer"]
