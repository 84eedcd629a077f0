"""`glmrun plan`: sizes against the published ones, control groups of both versions, the remembered bandwidth, the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoint_folder import write_folder
from support.command_line import exit_code
from support.tiny_model import ODD, Tiny
from test_cli import glmrun

from glmrun import machine
from glmrun.cli import plan as command
from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from glmrun.machine import Memory, group_memory, memory
from glmrun.measure import advice, bandwidth
from glmrun.measure.bandwidth import Bandwidth, memory_bandwidth
from glmrun.measure.plan import (
    WORKING_BYTES,
    Demand,
    demand_of_download,
    demand_of_file,
    demand_of_recipe,
    demand_of_tensors,
    devices,
    fits_device,
)
from quant.checkpoint import Checkpoint
from quant.config import FLASH
from quant.recipes import RECIPES, tensor_formats

GIB = 1 << 30


@pytest.fixture
def q4() -> Demand:
    return demand_of_recipe(FLASH, RECIPES["Q4_K_M"])


def test_full_size_model(q4: Demand) -> None:
    """The file without the prediction layer as llama-quantize writes it; 54,144 bytes a position as llama.cpp logs it."""
    assert (q4.file_bytes, q4.weights, q4.cache, q4.per_position) == (18_123_246_080, 18_123_246_080, "f16", 54_144)
    assert q4.columns == 47 * (512 + 2 * 64 + 36 + 512 + 64)  # key: codes, rope, scales; value: codes, scales and sums
    assert q4.needed(65_536) == 18_123_246_080 + 3384 * (1 << 20) + 65_536 * q4.columns + WORKING_BYTES
    assert demand_of_recipe(FLASH, RECIPES["Q4_K_M"], "q8_0").per_position == 28_764
    assert demand_of_recipe(FLASH, RECIPES["BF16"]).per_position == 2 * 54_144  # no matrix is quantized: a float32 cache
    assert demand_of_recipe(FLASH, RECIPES["BF16"], "f16").per_position == 54_144


def test_a_download_asks_for_what_plan_says() -> None:
    for name in ("Q4_K_M", "Q6_K", "Q8_0", "BF16"):
        planned = demand_of_recipe(FLASH, RECIPES[name])
        assert demand_of_download("x", planned.weights, RECIPES[name]).needed(32_768) == planned.needed(32_768)
    assert demand_of_download("x", 5, None).needed(1) > demand_of_download("x", 5, RECIPES["Q8_0"]).needed(1)


def test_largest_context_is_the_last_that_fits(q4: Demand) -> None:
    for available in (q4.needed(1), 19 * GIB, 20 * GIB + 12345):
        n = q4.largest_context(available)
        assert q4.needed(n) <= available < q4.needed(n + 1)
    assert q4.largest_context(q4.needed(0) - 1) == q4.largest_context(0) == 0
    assert q4.largest_context(1000 * GIB) == 202_752


def test_ceiling_is_bandwidth_over_bytes(q4: Demand) -> None:
    assert abs(q4.per_token / 2.22e9 - 1) <= 0.01
    assert q4.ceiling(q4.per_token * 10.0) == 10.0
    assert q4.ceiling(1e9 * (q4.per_token + 1000 * 54_144), 1000) == 1e9


def test_a_model_in_part(q4: Demand) -> None:
    """Of a token's 1.05 GB of experts a share is missing that is the same as of all experts."""
    assert q4.experts == sum(n for name, (_, _, n) in tensor_formats(RECIPES["Q4_K_M"], q4.config).items() if "_exps." in name)
    assert q4.experts_per_token * 64 == q4.experts * 4
    assert q4.missing_per_token(q4.needed(0)) == q4.missing_per_token(1 << 50) == 0
    assert q4.missing_per_token(q4.needed(0) - q4.experts) == q4.experts_per_token
    assert q4.missing_per_token(q4.needed(0) - q4.experts // 2) == q4.experts_per_token // 2
    assert q4.missing_per_token(q4.needed(0) - q4.experts - 1) is q4.speed_in_part(4e10, 1e9, 0) is None
    assert q4.speed_in_part(4e10, 1e9, q4.needed(0)) == 4e10 / q4.per_token
    assert q4.speed_in_part(1e30, 1e9, q4.needed(0) - q4.experts) == pytest.approx(1e9 / q4.experts_per_token)


def test_the_quantization_that_fits_is_named(q4: Demand) -> None:
    all_four = advice.quantizations(FLASH)
    q6, q8, bf16 = all_four[1:]
    n_ctx = 32_768

    def here(available: int, disk: float = 1e9) -> advice.Machine:
        return advice.Machine(available, 4e10, disk, True)

    assert [d.name for d in all_four] == ["Q4_K_M", "Q6_K", "Q8_0", "BF16"]
    for demand, available, name in (
        (bf16, q8.needed(n_ctx), "Q8_0"),
        (bf16, q8.needed(n_ctx) - 1, "Q6_K"),
        (q8, q6.needed(n_ctx) - 1, "Q4_K_M"),
        (q8, q4.needed(n_ctx), "Q4_K_M"),
    ):
        said = advice.advice(demand, all_four, n_ctx, here(available))
        assert said is not None and said.startswith(f"{name} fits: ") and said.endswith("with a context of 32,768 tokens.")
    for available in (q4.needed(0) - q4.experts // 2, q4.needed(0) - 1000):
        said = advice.advice(q8, all_four, n_ctx, here(available))
        part = advice.in_part(q4, here(available))
        assert part is not None and part.tokens_per_second == q4.speed_in_part(4e10, 1e9, available) and said == f"Q4_K_M {part}."
        assert advice.advice(q4, all_four, n_ctx, here(available)) is None  # nothing is smaller, and it runs
    for shorter in (q4.needed(0) + q4.cache_per_position, q4.needed(n_ctx) - 1):  # fits with a shorter context
        n = q4.largest_context(shorter)
        assert (
            1 <= n < n_ctx and advice.advice(q8, all_four, n_ctx, here(shorter)) == f"Q4_K_M fits with a context of {n:,} tokens."
        )
        assert advice.advice(q4, all_four, n_ctx, here(shorter)) is None
    assert advice.advice(q4, all_four, n_ctx, here(1 << 30)) == "No quantization of it fits, not even in part."
    assert advice.in_part(q4, here(q4.needed(0))) is advice.in_part(q4, here(1 << 30)) is None
    half = q4.needed(0) - q4.experts // 2
    assert "at most 1.7 tokens a second, 0.52 GB of each" in str(advice.in_part(q4, here(half)))
    assert "not measured" not in str(advice.in_part(q4, here(half)))
    assert "1.0 GB/s, a speed that is not measured" in str(advice.in_part(q4, advice.machine_with(half, 4e10, [])))


def test_the_first_file_that_can_be_measured_gives_the_disks_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "large").write_bytes(b"2")
    monkeypatch.setattr(advice, "disk_bandwidth", lambda path: {"small": None, "large": 3e9}[path.name])
    files = [tmp_path, tmp_path / "none", tmp_path / "small", tmp_path / "large"]
    assert advice.machine_with(5, 4e10, files) == advice.Machine(5, 4e10, 3e9, True)
    assert advice.machine_with(5, 4e10, files[:3]) == advice.Machine(5, 4e10, 1e9, False)


def test_tensors_that_are_not_written_yet(q4: Demand) -> None:
    """As the recipe's, whose prediction layer takes room in the file only."""
    with_prediction = tensor_formats(RECIPES["Q4_K_M"], FLASH)
    found = demand_of_tensors("Q4_K_M", FLASH, with_prediction)
    assert found.file_bytes == sum(n_bytes for _, _, n_bytes in with_prediction.values()) > q4.file_bytes
    assert replace(found, config=q4.config, file_bytes=q4.file_bytes) == q4


def test_a_disk_is_measured_past_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * 1000)
    assert bandwidth.disk_bandwidth(path) is None  # too small
    with open(path, "wb") as file:
        file.truncate(256 << 20)
    measured = bandwidth.disk_bandwidth(path, 0.05)
    assert measured is None or measured > 1e6  # None: a file system without


def test_a_file_asks_for_what_its_tensors_are(tiny_gguf: Callable[..., Tiny]) -> None:
    tiny = tiny_gguf("Q8_0", config=replace(ODD, num_nextn_predict_layers=1))
    file = open_gguf(tiny.path)
    demand = demand_of_file(file, config_from_gguf(file))
    prediction = sum(t.n_bytes for t in file.tensors.values() if t.name.startswith(f"blk.{ODD.num_hidden_layers}."))
    assert prediction > 0 and demand.weights == sum(t.n_bytes for t in file.tensors.values()) - prediction
    assert demand.file_bytes == file.size and demand.cache == "f16"
    assert 0 < demand.ahead <= prediction  # its embeddings and head may be the trunk's
    assert demand.needed_ahead(30) == demand.ahead + 30 * demand.per_position // ODD.num_hidden_layers
    assert demand_of_file(open_gguf(tiny_gguf("Q8_0").path), ODD).needed_ahead(30) == 0


def test_the_file_and_the_recipe_agree(tiny_gguf: Callable[..., Tiny]) -> None:
    from glmrun.tensors.weights import Weights

    file = open_gguf(tiny_gguf("Q8_0").path)
    config = config_from_gguf(file)
    demand, planned = demand_of_file(file, config), demand_of_recipe(config, RECIPES["Q8_0"])
    weights = Weights(file, config)
    assert (demand.per_token, demand.per_position) == (planned.per_token, planned.per_position)
    assert demand.per_token == weights.bytes_per_token
    assert demand.per_position == config.num_hidden_layers * int(weights.model["row_bytes"]) and demand.columns == 0


def test_columns_beside_the_cache_are_counted(tiny_gguf: Callable[..., Tiny]) -> None:
    from glmrun.kernels.attention.columns import BLOCK
    from glmrun.tensors.weights import Weights

    file = open_gguf(tiny_gguf("Q4_K_M").path)
    config = config_from_gguf(file)
    demand, planned = demand_of_file(file, config), demand_of_recipe(config, RECIPES["Q4_K_M"])
    n_layers, _, _, block_bytes, *_ = Weights(file, config).cache_shape(512)
    assert demand.columns == planned.columns and demand.cache_per_position == demand.per_position + demand.columns
    assert 0 < n_layers * block_bytes <= demand.columns * BLOCK <= 1.04 * n_layers * block_bytes


def test_the_readme_says_what_plan_says() -> None:
    text = " ".join((Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split())
    q4, q6, q8, _ = advice.quantizations(FLASH)
    least = [f"{d.needed(0) / 1e9:.1f}" for d in (q4, q6, q8)]
    assert "Q4_K_M needs {} GB of memory, Q6_K {}, Q8_0 {}, and".format(*least) in text
    assert f"1,000 tokens of context up to {1000 * max(d.cache_per_position for d in (q4, q6, q8)) / 1e9:.2f};" in text


def test_devices(q4: Demand) -> None:
    listed = devices()
    assert len(listed) >= 60 and {d.kind for d in listed} == {"cpu", "mac", "gpu"}
    assert len({d.name for d in listed}) == len(listed) and all(d.memory >= 8 * GIB and d.bandwidth >= 1e10 for d in listed)
    card = next(d for d in listed if d.name == "NVIDIA RTX 4090")
    assert (card.memory, card.bandwidth) == (24 * GIB, 1008e9)
    assert fits_device(q4, card, 32_768) and not fits_device(demand_of_recipe(FLASH, RECIPES["Q6_K"]), card, 32_768)


# ---- the machine -----------------------------------------------------------------------------------------------------


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def test_control_groups_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    group(tmp_path / "fs" / "outer", max=8 * GIB, current=6 * GIB, stat="anon 5\ninactive_file 1024\nactive_file 2048")
    group(tmp_path / "fs" / "outer" / "inner", max="max", current=GIB)
    assert group_memory(tmp_path / "cgroup", tmp_path / "fs") == (8 * GIB, 2 * GIB + 3072)
    group(tmp_path / "fs" / "outer" / "inner", max=4 * GIB, current=GIB)
    assert group_memory(tmp_path / "cgroup", tmp_path / "fs") == (4 * GIB, 2 * GIB + 3072)


def test_control_groups_version_1(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/\n")
    group(tmp_path / "memory", limit_in_bytes=2**63 - 4096, usage_in_bytes=GIB)
    group(tmp_path / "memory" / "jobs" / "7", limit_in_bytes=2 * GIB, usage_in_bytes=3 * GIB, stat="total_inactive_file 512")
    assert group_memory(tmp_path / "cgroup", tmp_path) == (2 * GIB, 0)
    (tmp_path / "cgroup").write_text("4:memory:/not/visible/in/here\n")
    assert group_memory(tmp_path / "cgroup", tmp_path) == (2**63 - 4096, 2**63 - 4096 - GIB)


def test_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_memory(tmp_path / "nothing", tmp_path) is None
    (tmp_path / "cgroup").write_text("0::/../..\nnonsense\n")
    assert group_memory(tmp_path / "cgroup", tmp_path) is None
    monkeypatch.setattr(machine, "group_memory", lambda: (GIB, GIB // 2))
    assert memory() == Memory(GIB, GIB // 2, True)
    monkeypatch.setattr(machine, "group_memory", lambda: (1 << 62, 1 << 61))
    assert not memory().limited and memory().total > GIB


def test_bandwidth_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1e9, 2e9, 3e9, 4e9])
    monkeypatch.setenv("GLMRUN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda team, n_bytes, rounds: next(speeds))
    assert bandwidth._others_compute(1.0, 0.5) and not bandwidth._others_compute(1.0, 0.9)
    monkeypatch.setattr(bandwidth, "_others_compute", lambda seconds, processor_seconds: False)
    assert [memory_bandwidth(1).bytes_per_second for _ in range(2)] == [1e9, 1e9]
    assert memory_bandwidth(1, again=True).bytes_per_second == memory_bandwidth(1).bytes_per_second == 2e9
    monkeypatch.setattr(bandwidth, "_others_compute", lambda seconds, processor_seconds: True)
    assert memory_bandwidth(1, again=True) != memory_bandwidth(1) and memory_bandwidth(1).bytes_per_second == 2e9
    for damage in (
        "",
        "[{]",
        '[{"cpu": 1}]',
        "[7]",
        '{"a": 1}',
        '[{"bytes_per_second": "1", "n_threads": 1, "cpu": "", "measured": ""}]',
    ):
        (tmp_path / "bandwidth.json").write_text(damage)
        assert bandwidth._read_known(tmp_path / "bandwidth.json") == []
    monkeypatch.setenv("GLMRUN_CACHE_DIR", str(tmp_path / "bandwidth.json"))  # no folder: nothing can be written or cleared away
    monkeypatch.setattr(bandwidth, "_others_compute", lambda seconds, processor_seconds: False)
    assert memory_bandwidth(1).bytes_per_second == 4e9


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def made(available: int, disk: int = 1000 * GIB) -> None:
        monkeypatch.setattr(machine, "memory", lambda: Memory(32 * GIB, available, False))
        monkeypatch.setattr(
            bandwidth, "memory_bandwidth", lambda threads=None, again=False: Bandwidth(44.46e9, 2, "x", "2026-01-02T00:00:00Z")
        )
        monkeypatch.setattr(command, "_disk", lambda: (Path("/models"), disk))
        monkeypatch.setattr(command, "_measurable", lambda model: iter(()))

    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    code = exit_code("plan", *arguments)
    return code, capsys.readouterr().out


def test_the_command_says_whether_it_fits(machine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    machine_of(24 * GIB)
    code, out = run(capsys, "Q4_K_M", "-c", "32k")
    assert code == 0 and "It fits." in out and "32,000 positions of 54,144 bytes, f16" in out and "20.0  tokens/s at most" in out
    assert out.splitlines()[0] == "GLM-4.7-Flash as Q4_K_M" and "16.88 GiB  for the file; 1000.00 GiB are free in /models" in out
    code, out = run(capsys, "-c", "200k")
    assert code == 1 and "a context of" in out and "-c " in out
    largest = int(out.rpartition("(-c ")[2].partition(")")[0])
    assert run(capsys, "-c", str(largest))[0] == 0 and run(capsys, "-c", str(largest + 1))[0] == 1
    machine_of(8 * GIB)
    code, out = run(capsys)
    assert code == 1 and "does not fit now" in out and "Close other programs" in out
    assert "It fits in part: at most 1." in out and "not measured" in " ".join(out.split()) and "Q4_K_M fits" not in out
    machine_of(24 * GIB)
    out = run(capsys, "Q8_0")[1]
    assert "It fits in part: at most 2.0 tokens" in out and "\nQ4_K_M fits: 22.4 GB with a context of 32,768 tokens.\n" in out
    assert json.loads(run(capsys, "Q8_0", "--json")[1])["instead"].startswith("Q4_K_M fits: ")
    machine_of(GIB)
    out = run(capsys)[1]
    assert "fits in part" not in out and "\nNo quantization of it fits, not even in part.\n" in out
    assert run(capsys, "nano")[0] == 0


def test_convert_names_what_fits_before_it_begins(
    tmp_path: Path, machine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "Tiny-1")
    config = Checkpoint.open(folder).config
    small, large = (demand_of_recipe(config, RECIPES[name]) for name in ("Q4_K_M", "BF16"))
    n_ctx = config.max_position_embeddings
    for available, words in (
        (large.needed(n_ctx) + 1, ""),
        (small.needed(n_ctx), "BF16 needs "),
        (WORKING_BYTES // 2, "No quantization of it fits"),
    ):
        machine_of(available)
        assert exit_code("convert", str(folder), "-q", "bf16", "--dry-run") == 0
        said = capsys.readouterr().err
        assert words in said and bool(said) == bool(words)
        assert (" fits: " in said) == (available == small.needed(n_ctx))  # Q8_0's: so small a model's cache is most of it


def test_the_disk_counts_for_a_file_that_is_not_there(machine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    machine_of(24 * GIB, disk=GIB)
    code, out = run(capsys, "q4_k_m")
    assert code == 1 and "the disk is too full for the file.\nNo quantization of it fits on the disk.\n" in out
    assert "full for the file, and 7.86 GiB of memory are missing.\nNo quantization of it fits on" in run(capsys, "Q8_0")[1]
    assert run(capsys, "nano")[0] == 0
    for available, disk, words in (
        (64 * GIB, 20 * GIB, "Q4_K_M fits: 22.4 GB with a context of 32,768 tokens."),  # memory has room for Q6_K
        (64 * GIB, 25 * GIB, "Q6_K fits: "),
        (18 * GIB, 20 * GIB, "Q4_K_M fits with a context of "),
        (8 * GIB, 20 * GIB, "Q4_K_M fits in part: "),
        (GIB, 20 * GIB, "No quantization of it fits, not even in part."),
    ):
        machine_of(available, disk)
        code, out = run(capsys, "Q8_0")
        assert code == 1 and "the disk is too full for the file" in out and f"\n{words}" in out
        assert json.loads(run(capsys, "Q8_0", "--json")[1])["instead"].startswith(words)


def test_the_command_in_json(machine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    machine_of(24 * GIB)
    code, out = run(capsys, "Q6_K", "-c", "64K", "--json", "--devices")
    plan = json.loads(out)
    assert code == 1 and not plan["fits"] and plan["context"] == 65_536 and plan["largest_context"] == 4_996
    assert [q["name"] for q in plan["quantizations"]] == ["Q4_K_M", "Q6_K", "Q8_0", "BF16"]
    assert plan["bandwidth"]["bytes_per_second"] == 44.46e9 and plan["memory"]["available"] == 24 * GIB
    best = next(d for d in plan["devices"] if d["name"] == "NVIDIA RTX 4090")
    assert list(best["ceilings"]) == ["Q4_K_M"] and abs(best["ceilings"]["Q4_K_M"] - 1008e9 / 2_223_066_752) <= 0.01
    assert "NVIDIA RTX 4090" in run(capsys, "nano", "--devices")[1]


def test_words_choose_among_the_devices(machine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """A card that the table has under two names, of which one leaves out the series, is shown once."""
    machine_of(24 * GIB)
    for words in (["rtx", "4090"], ["-m", "Q6_K", "rtx", "4090"], ["Q6_K", "RTX", "4090"]):
        out = run(capsys, *words, "--devices")[1]
        rows = [line for line in out.splitlines() if "RTX" in line]
        assert len(rows) == 1 and "4090" in rows[0] and ("as Q6_K" in out) is ("Q6_K" in words)
    assert [d["name"] for d in json.loads(run(capsys, "--devices", "ryzen", "ai", "--json")[1])["devices"]] == [
        "AMD Ryzen AI 9 HX 370 (LPDDR5X-7500)",
        "AMD Ryzen AI Max+ 395 (LPDDR5X-8000)",
    ]


def test_the_program(tmp_path: Path, tiny_gguf: Callable[..., Tiny]) -> None:
    """With nothing replaced: a first measurement, and the same figure again."""
    path = tiny_gguf("Q8_0").path
    done = glmrun("plan", str(path), "--json", "-t", "1")
    assert done.returncode == 0 and json.loads(done.stdout)["bandwidth"]["bytes_per_second"] > 1e8
