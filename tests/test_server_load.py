"""Many and bad clients, in the short form of scripts/load_server.py: no place is lost, and nobody gets another one's answer."""

import threading

import pytest
from support import server_load
from support.served import Served, served

from glmrun.engine.model import Model
from glmrun.server.service import Options


@pytest.fixture(scope="module")
def crowded(nano: Model):  # type: ignore[no-untyped-def]
    with served(nano, Options(n_waiting=60)) as server:
        yield server


def test_nobody_gets_anothers_answer_and_no_place_is_lost(crowded: Served, caplog: pytest.LogCaptureFixture) -> None:
    alone = [server_load.answer(crowded, i) for i in range(8)]
    assert len(set(alone)) > 4
    n_threads = threading.active_count()
    assert server_load.crowd(crowded, 40) == alone * 5
    server_load.disconnects(crowded, 30)
    assert server_load.idle(crowded)
    assert server_load.slow_readers(crowded, 4) == alone
    assert server_load.half_open(crowded, 20) == alone
    statuses = server_load.malformed(crowded, 200)
    assert set(statuses) <= {200, 400, 404} and statuses[400] > 100
    assert server_load.idle(crowded) and crowded.service.desk.n_running == 0
    assert [server_load.answer(crowded, i) for i in range(8)] == alone
    assert threading.active_count() <= n_threads + 4 + 32  # places, and threads that read bodies
    assert not [record for record in caplog.records if record.exc_info]  # a client that leaves is no fault of the server
