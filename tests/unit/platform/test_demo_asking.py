"""Which question the demo ends with: one on which there is something to choose, whether or not the choice is right."""

from __future__ import annotations

from collections.abc import Callable

from irlops.cli.gateway_client import Answer
from irlops.contracts.rerank import AnswerVotes
from irlops.demo.asking import MAX_QUESTIONS, ask_until_disputed
from support.demo_results import rerank_result

# From the longest solution to the shortest: q0, q1, …
ROWS = [{"question": f"q{i}", "solution": "x" * (40 - i), "answer": "1"} for i in range(16)]


def gateway(asked: list[str], *disputed: str) -> Callable[[str], Answer]:
    """All candidates give one answer, except on the disputed questions."""

    def ask(question: str) -> Answer:
        asked.append(question)
        votes = [AnswerVotes(answer="1", votes=15, weight=9.0), AnswerVotes(answer="0", votes=1, weight=0.1)]
        answers = votes if question in disputed else votes[:1]
        return Answer(question, rerank_result().model_copy(update={"answers": answers}))

    return ask


def test_questions_are_asked_from_the_longest_on_until_candidates_disagree() -> None:
    asked: list[str] = []
    shown = ask_until_disputed(ROWS, 0, gateway(asked, "q2", "q3"))
    assert asked == ["q0", "q1", "q2"]
    assert (shown.row["question"], shown.answer.text, shown.num_agreed) == ("q2", "q2", 2)


def test_the_first_question_is_shown_when_candidates_never_disagree() -> None:
    asked: list[str] = []
    shown = ask_until_disputed(ROWS, 0, gateway(asked))
    assert len(asked) == MAX_QUESTIONS
    assert (shown.row["question"], shown.num_agreed) == ("q0", 0)


def test_the_seed_chooses_which_of_the_longest_quarter_comes_first() -> None:
    # 16 problems: the longest quarter is q0 to q3, so seed 7 begins with q3, and seed 4 with q0 again.
    assert [ask_until_disputed(ROWS, seed, gateway([], "q0", "q3")).row["question"] for seed in (7, 4)] == ["q3", "q0"]
