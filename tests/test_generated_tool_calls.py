"""A short form of scripts/generated_tool_calls.py: random calls, written correctly and damaged, read at random cuts."""

import random

import pytest
from generated_tool_calls import fault, make_case, read


def test_correct_calls_come_back_exactly():
    chance = random.Random(5)
    for _ in range(400):
        case = make_case(chance, None)
        calls, text, _ = read(case, chance)
        assert (calls, text) == (case.meant, ""), case.written


@pytest.mark.parametrize(("damage", "understood"), [("dropped", 0.78), ("moved", 0.1), ("doubled", 0.6)])
def test_damaged_calls_call_nothing_undeclared_and_keep_the_text(damage, understood):
    """A few lose words where a tag moved between two values; behind a </tool_call> that moved forward, quoted calls stand alone."""
    chance, good, lost = random.Random(6), 0, 0
    for _ in range(200):
        case = make_case(chance, damage)
        calls, text, state = read(case, chance)
        wrong = fault(case, calls, text, state) or ""
        assert damage == "moved" or "not declared" not in wrong, case.written
        lost += bool(wrong)
        good += calls == case.meant
    assert lost <= 12
    assert good >= understood * 200
