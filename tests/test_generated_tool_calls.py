"""A short form of scripts/generated_tool_calls.py: random calls, written correctly and damaged, read at random cuts."""

import random
from dataclasses import replace

import pytest
from generated_tool_calls import fault, make_case, read


def test_correct_calls_come_back_exactly():
    chance = random.Random(5)
    for _ in range(400):
        case = make_case(chance, None)
        calls, text, _ = read(case, chance)
        assert (calls, text) == (case.meant, ""), case.written


@pytest.mark.parametrize(("damage", "understood"), [("dropped", 0.97), ("moved", 0.92), ("doubled", 0.6)])
def test_damaged_calls_call_nothing_undeclared_and_keep_the_text(damage, understood):
    """A doubled <arg_value> or </arg_value> is data, as the format says; so are tags that moved to the edge of such a value."""
    chance, good = random.Random(6), 0
    for _ in range(200):
        case = make_case(chance, damage)
        calls, text, state = read(case, chance)
        assert fault(case, calls, text, state) is None, case.written
        good += calls == case.meant
    assert good >= understood * 200


def test_what_generation_cut_off_is_not_called():
    """Wherever an answer of whole calls ends too early, only calls that were closed are carried out."""
    chance = random.Random(7)
    for _ in range(15):
        case = make_case(chance, None)
        for end in range(1, len(case.written), 1 + len(case.written) // 80):
            calls, _, _ = read(replace(case, written=case.written[:end]), chance, cut_off=True)
            assert calls == case.meant[: len(calls)], case.written[:end]
