from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract.goals import Goal, GoalResult, all_hold, as_record, judge, parse_goals, sentence

GOALS = parse_goals({"val_accuracy": ">= 75 %", "attention_ratio": ">= 1.5", "consistency": ">= 70 %"})

comparisons = st.sampled_from([">=", "<=", ">", "<"])
targets = st.integers(-999_999, 999_999).flatmap(lambda n: st.integers(-4, 4).map(lambda power: n * 10.0**power))


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "comparison", "target"),
    [
        (">= 0.75", ">=", 0.75),
        (">= 75 %", ">=", 0.75),
        (">=75%", ">=", 0.75),
        ("  <=  .5  ", "<=", 0.5),
        ("< 3.", "<", 3.0),
        ("> -2", ">", -2.0),
        ("> +2e3", ">", 2000.0),
        ("<= 1.5E-2 %", "<=", 1.5e-4),
    ],
)
def test_condition_is_a_comparison_and_a_number(text: str, comparison: str, target: float) -> None:
    goal = Goal.parse("loss", text)
    assert (goal.metric, goal.comparison) == ("loss", comparison)
    assert goal.target == pytest.approx(target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "75",
        ">=",
        "> > 3",
        "== 3",
        "=> 3",
        ">= many",
        ">= 1,5",
        ">= nan",
        ">= inf",
        ">= 0x10",
        ">= 3 %%",
        ">= 3 or 4",
    ],
)
def test_invalid_condition_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(ValueError, match="write a comparison and a number, such as") as refusal:
        Goal.parse("loss", text)
    assert str(refusal.value).startswith(f"{text!r} is not a valid goal;")


@given(comparisons, targets)
@settings(deadline=None)
def test_text_of_a_goal_parses_to_the_same_goal(comparison: str, target: float) -> None:
    goal = Goal("loss", comparison, float(f"{target:g}"))
    metric, _, condition = str(goal).partition(" ")
    assert Goal.parse(metric, condition) == goal


# --- verdicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "below", "at", "above"),
    [
        ("> 2", False, False, True),
        (">= 2", False, True, True),
        ("< 2", True, False, False),
        ("<= 2", True, True, False),
    ],
)
def test_comparisons_are_exact_at_the_limit(text: str, below: bool, at: bool, above: bool) -> None:
    goal = Goal.parse("loss", text)
    assert [goal.holds(value) for value in (1.999, 2, 2.001)] == [below, at, above]


@pytest.mark.parametrize("text", ["> -1e300", ">= 0", "< 1e300", "<= 0"])
@pytest.mark.parametrize("value", [None, True, False, math.nan, math.inf, -math.inf, "1", [1.0], {}])
def test_non_finite_value_meets_no_goal(text: str, value: Any) -> None:
    assert not Goal.parse("loss", text).holds(value)


def test_huge_integer_is_judged() -> None:
    assert [
        result.holds for result in judge(parse_goals({"a": ">= 1", "b": "<= 1"}), {"a": 10**400, "b": 10**400})
    ] == [
        False,
        False,
    ]


def test_results_are_in_the_order_of_the_goals() -> None:
    results = judge(GOALS, {"val_accuracy": 1.0, "attention_ratio": math.nan, "other": 3})
    assert [(result.goal.metric, result.holds) for result in results] == [
        ("val_accuracy", True),
        ("attention_ratio", False),
        ("consistency", None),  # never reported
    ]
    assert results[0].value == 1.0
    assert results[2].value is None
    assert as_record(results) == {"val_accuracy": True, "attention_ratio": False, "consistency": False}


@pytest.mark.parametrize("value", [None, True, "0.9"])
def test_value_that_is_not_a_number_misses_its_goal(value: Any) -> None:
    assert judge(GOALS[:1], {"val_accuracy": value}) == [GoalResult(GOALS[0], None, False)]


def test_all_hold_needs_at_least_one_goal_and_all_met() -> None:
    metrics = {"val_accuracy": 0.75, "attention_ratio": 1.5, "consistency": 0.7}
    assert all_hold(judge(GOALS, metrics))
    assert not all_hold(judge(GOALS, {**metrics, "consistency": 0.69}))
    assert not all_hold(judge(GOALS, {}))
    assert not all_hold(judge([], metrics))


# --- words of a command -------------------------------------------------------------------------------


def test_sentence_names_missed_goals() -> None:
    said = sentence(judge(GOALS, {"val_accuracy": 1.0, "attention_ratio": 1.27, "consistency": 0.38}))
    assert said == (
        "1 of 3 goals met; attention_ratio 1.27, goal >= 1.5: missed; consistency 0.38, goal >= 0.7: missed"
    )


def test_sentence_for_all_met_none_set_and_not_reported() -> None:
    assert sentence([]) == "no goals are set"
    assert sentence(judge(GOALS[:1], {"val_accuracy": 0.8})) == "1 of 1 goals met"
    assert sentence(judge(GOALS[:1], {})) == ("0 of 1 goals met; val_accuracy never reported, goal >= 0.75: not judged")
    assert sentence(judge(GOALS[:1], {"val_accuracy": math.nan})).endswith("val_accuracy nan, goal >= 0.75: missed")
    assert sentence(judge(GOALS[:1], {"val_accuracy": None})).endswith(
        "val_accuracy not a number, goal >= 0.75: missed"
    )
