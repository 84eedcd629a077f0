"""What the interfaces of other programs have in common when they read a body."""

import json

import pytest
from pydantic import BaseModel

from glmrun.server import form
from glmrun.server.interface import BadRequest


class Item(BaseModel):
    type: str


class Body(BaseModel):
    items: list[Item] = []
    top_p: float | None = None


def test_a_wrong_field_is_named_and_an_unknown_one_is_left_out() -> None:
    assert form.held_to(Body, {"items": [{"type": "a", "new": 1}], "later": {}}) == Body(items=[Item(type="a")])
    with pytest.raises(BadRequest, match=r"^items\.1\.type: .*, found 5$") as refused:
        form.held_to(Body, {"items": [{"type": "a"}, {"type": 5}]})
    assert refused.value.param == "items.1.type"
    with pytest.raises(BadRequest, match=r"^items\.0\.type: Field required$"):
        form.held_to(Body, {"items": [{}]})
    with pytest.raises(BadRequest, match=r"^the body: ") as refused:
        form.held_to(Body, [])
    assert refused.value.param is None


def test_a_long_wrong_value_is_told_in_short() -> None:
    with pytest.raises(BadRequest) as refused:
        form.held_to(Body, {"top_p": "x" * 100_000})
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_an_effort_is_a_switch_and_a_budget() -> None:
    assert form.effort("none", "e") == (False, None)
    assert form.effort("low", "e")[0] and form.effort("low", "e")[1] > form.effort("minimal", "e")[1] > 0
    assert form.effort("medium", "e") == form.effort("high", "e") == (True, None)
    with pytest.raises(BadRequest, match=r"^reasoning\.effort: expected one of none, .*, found 'hard'$"):
        form.effort("hard", "reasoning.effort")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("", {}), (" ", {}), (None, {}),
        ("{broken", {"arguments": "{broken"}), ("[1]", {"arguments": [1]}), ("[" * 100_000, {"arguments": "[" * 100_000}),
    ],
)  # fmt: skip
def test_arguments_that_fit_no_schema_are_kept(given: object, expected: dict) -> None:
    assert form.arguments(given) == expected


def test_an_event_is_two_lines_whatever_it_says() -> None:
    data = {"type": "t", "text": "a\nb\r\u2028\x85\ud800 é"}
    named, said, *rest = form.event(data).decode().splitlines()
    assert (named, rest) == ("event: t", [""])
    assert json.loads(said.removeprefix("data: ")) == data
