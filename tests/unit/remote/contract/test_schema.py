"""Dataclasses as JSON: a written value is read back, and the error for a malformed one names its field."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.contract.schema import Malformed, from_json, to_json


@dataclass(frozen=True)
class Wheel:
    size: int


@dataclass(frozen=True)
class Car:
    name: str = field(metadata={"pattern": re.compile("[a-z]+")})
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    speed: float = 0.0
    doors: int = field(default=4, metadata={"least": 2})
    fuel: str = field(default="petrol", metadata={"choices": ("petrol", "diesel")})
    tags: dict[str, str] = field(default_factory=dict)
    stops: list[tuple[str, int]] = field(default_factory=list)
    is_new: bool = False
    rest: Any = None


cars = st.builds(
    Car,
    name=st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    wheels=st.lists(st.builds(Wheel, st.integers(-(2**62), 2**62)), max_size=4).map(tuple),
    spare=st.none() | st.builds(Wheel, st.integers(0, 9)),
    speed=st.floats(-1e11, 1e11),
    doors=st.integers(2, 9),
    fuel=st.sampled_from(["petrol", "diesel"]),
    tags=st.dictionaries(st.text("ab", max_size=3), st.text("ab\n", max_size=9), max_size=3),
    stops=st.lists(st.tuples(st.text("ab", max_size=3), st.integers(0, 9)), max_size=3),
    is_new=st.booleans(),
    rest=st.none() | st.just({"free": [1, "x"]}),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(cars)
def test_written_value_is_read_back(car: Car) -> None:
    assert from_json(Car, json.loads(json.dumps(to_json(car)))) == car


@given(anything)
def test_any_value_is_read_or_its_field_named(value: Any) -> None:
    try:
        from_json(Car, value)
    except Malformed as error:
        assert error.expected


@given(st.dictionaries(st.sampled_from([*Car.__dataclass_fields__, "more"]), anything))
def test_malformed_field_has_its_default(value: dict[str, Any]) -> None:
    problems: list[str] = []
    car = from_json(Car, {**value, "name": "van"}, problems)
    assert car.name == "van"
    assert set(problems) < set(Car.__dataclass_fields__)
    for name in problems:
        assert getattr(car, name) == getattr(Car("van"), name)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "must be an object"),
        ({}, "`name` must be text"),
        ({"name": "Van"}, "`name` must be text like [a-z]+"),
        ({"name": "van", "wheels": {}}, "`wheels` must be a list"),
        ({"name": "van", "wheels": [{"size": 1}, {"size": "x"}]}, "`wheels.1.size` must be an integer"),
        ({"name": "van", "wheels": [7]}, "`wheels.0` must be an object"),
        ({"name": "van", "spare": {"size": True}}, "`spare.size` must be an integer"),
        ({"name": "van", "speed": float("nan")}, "`speed` must be a number"),
        ({"name": "van", "speed": 1e13}, "`speed` must be a number"),
        ({"name": "van", "speed": 10**400}, "`speed` must be a number"),
        ({"name": "van", "speed": -(10**400)}, "`speed` must be a number"),
        ({"name": "van", "doors": 1}, "`doors` must be 2 or more"),
        ({"name": "van", "doors": 2**63}, "`doors` must be an integer"),
        ({"name": "van", "fuel": "coal"}, "`fuel` must be one of petrol, diesel"),
        ({"name": "van", "tags": {"a": 1}}, "`tags.a` must be text"),
        ({"name": "van", "tags": {"a": "b\0"}}, "`tags.a` must be text"),
        ({"name": "van", "stops": [["a"]]}, "`stops.0` must be a list of 2 values"),
        ({"name": "van", "is_new": 1}, "`is_new` must be true or false"),
        ({"name": "v" * 5000}, "`name` must be text of at most 4096 characters"),
    ],
)
def test_malformed_field_is_refused_and_named(value: Any, said: str) -> None:
    with pytest.raises(Malformed) as caught:
        from_json(Car, value)
    assert str(caught.value) == said


def test_long_text_is_read_if_no_limit_is_set() -> None:
    assert len(from_json(Car, {"name": "v" * 5000}, longest=None).name) == 5000


def test_null_and_absence_are_the_default() -> None:
    assert from_json(Car, {"name": "van", "doors": None, "spare": None, "unknown": 1}) == Car("van")


# --- the metadata of fields ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Trip:
    json_head: ClassVar[dict[str, int]] = {"schema": 1}
    wheel: Wheel = field(metadata={"inline": True})
    is_over: bool = field(default=False, metadata={"key": "over"})
    note: str = field(default="", metadata={"omit": True})
    stops: tuple[int, ...] = field(default=(), metadata={"write": lambda stops: [str(stop) for stop in stops]})
    values: dict[str, Any] = field(default_factory=dict, metadata={"rest": True})


@pytest.mark.parametrize(
    ("trip", "written"),
    [
        (Trip(Wheel(3)), {"schema": 1, "size": 3, "over": False, "stops": []}),
        (Trip(Wheel(3), True, "x", (1,)), {"schema": 1, "size": 3, "over": True, "note": "x", "stops": ["1"]}),
        (
            Trip(Wheel(3), values={"lr": 1, "over": 7}),
            {"schema": 1, "size": 3, "over": False, "stops": [], "lr": 1},
        ),
    ],
)
def test_metadata_decides_how_a_field_is_written(trip: Trip, written: dict[str, Any]) -> None:
    assert to_json(trip) == written


def test_inline_and_remaining_keys_are_read_from_the_whole_object() -> None:
    own_names = {"wheel": 1, "values": 2}  # of fields that are no keys
    value = {"schema": 1, "size": 3, "over": True, "loss": 0.5, "lr": None, **own_names}
    rest = {"size": 3, "loss": 0.5, "lr": None, **own_names}
    assert from_json(Trip, value) == Trip(Wheel(3), True, values=rest)
    with pytest.raises(Malformed, match="`size` must be an integer"):
        from_json(Trip, {**value, "size": "x"})
    problems: list[str] = []
    assert from_json(Trip, {**value, "over": "x"}, problems).is_over is False
    assert problems == ["over"]
