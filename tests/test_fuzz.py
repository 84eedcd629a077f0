"""A short run of scripts/fuzz.py; 100,000 mutants of each kind are in benchmarks/results/fuzz.json."""

from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize("reader, n", [("gguf", 250), ("safetensors", 500)])
def test_damaged_files(tmp_path: Path, reader: str, n: int) -> None:
    found = fuzz.run(reader, 20261123, range(n), tmp_path)
    assert found["failures"] == []
    assert found["outcomes"]["refused"] >= n / 2
    assert found["outcomes"]["ran" if reader == "gguf" else "read"] >= n / 20


def test_a_mutant_can_be_made_again() -> None:
    for reader in fuzz.READERS:
        assert fuzz.mutant(reader, 5, 77) == fuzz.mutant(reader, 5, 77) != fuzz.mutant(reader, 5, 78)
