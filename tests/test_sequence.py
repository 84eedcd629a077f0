"""Sequences that wait for their next turn: the longest beginning is found again, and their memory is bounded."""

from glmrun.engine.sequence import KEPT, Idle, Sequence

N_CTX, N_LAYERS, ROW, BLOCK_BYTES = 100, 2, 64, 4096


def used(idle: Idle, ids: list[int]) -> Sequence:
    """A sequence as after a call that read ids."""
    sequence = idle.take(ids)
    n = len(sequence.tokens)
    sequence.rows[:, n : len(ids)] = [[[token % 251] * ROW for token in ids[n:]]] * N_LAYERS
    sequence.extend(ids[n:])
    idle.give_back(sequence)
    return sequence


def test_the_next_turn_finds_its_own_sequence() -> None:
    idle = Idle(N_LAYERS, N_CTX, ROW, BLOCK_BYTES, 10)
    one, two = used(idle, list(range(20))), used(idle, list(range(50, 70)))
    again = idle.take([*range(20), 99])
    assert again is one and again.tokens == list(range(20))
    assert idle.take([*range(50, 60), 1, 2]) is two and two.tokens == list(range(50, 60))


def test_a_short_common_beginning_is_copied_and_both_stay() -> None:
    idle = Idle(N_LAYERS, N_CTX, ROW, BLOCK_BYTES, 10)
    one = used(idle, list(range(1, 41)))
    other = idle.take([1, 2, 3, 90])
    assert other is not one and other.tokens == [1, 2, 3] and len(one.tokens) == 40
    assert (other.rows[:, :3] == one.rows[:, :3]).all() and other.rows[0, 2, 0] == 3 and not other.rows[:, 3:].any()


def test_what_waits_takes_no_more_than_one_context() -> None:
    idle = Idle(N_LAYERS, N_CTX, ROW, BLOCK_BYTES, 10)
    first, second, third = (used(idle, [start] * 40) for start in (1, 2, 3))
    assert not first.tokens and not first.rows.any()
    assert (len(second.tokens), len(third.tokens)) == (40, 40)
    whole = used(idle, [4] * N_CTX)  # one that fills the context is kept alone
    assert idle.latest is whole and not second.tokens and not third.tokens


def test_with_room_for_more_both_conversations_stay_whole() -> None:
    idle = Idle(N_LAYERS, 400, ROW, BLOCK_BYTES, 10)
    idle.room = 1500
    first = used(idle, list(range(200)))
    second = used(idle, [*range(120), *range(300, 380)])  # the same beginning
    assert second is not first and (len(first.tokens), len(second.tokens)) == (200, 200)
    assert (second.rows[:, :120] == first.rows[:, :120]).all()
    assert idle.take([*range(200), 7]) is first and idle.take([*range(120), *range(300, 380), 7]) is second
    idle.give_back(first), idle.give_back(second)
    others = [used(idle, [1000 + i] * 390) for i in range(3)]
    assert not first.tokens and len(second.tokens) == 200  # the one that waited longest is gone
    assert all(len(other.tokens) == 390 for other in others)


def test_of_many_short_ones_the_oldest_goes() -> None:
    idle = Idle(N_LAYERS, N_CTX, ROW, BLOCK_BYTES, 10)
    made = [used(idle, [i, i]) for i in range(KEPT + 1)]
    assert made[KEPT] is made[0] and made[0].tokens == [KEPT, KEPT]  # its memory is used again
    assert [made[i].tokens for i in range(1, KEPT)] == [[i, i] for i in range(1, KEPT)]
    assert not idle.take([0, 0]).tokens


def test_columns_are_kept_as_far_as_rows_are_and_of_the_last_used_alone() -> None:
    idle = Idle(N_LAYERS, 400, ROW, BLOCK_BYTES, 10)
    idle.room = 1500
    one = used(idle, list(range(200)))
    one.cache.rounded[:], one.cache.columns[:] = [192, 128], 7  # as a step that was given up in the second layer leaves them
    one.truncate(150)
    assert one.cache.rounded.tolist() == [128, 128]
    two = used(idle, [*range(60), *range(300, 380)])
    assert two is not one and not two.cache.rounded.any()
    assert not one.cache.rounded.any() and not one.cache.columns.any() and one.rows[0, 149, 0] == 149
