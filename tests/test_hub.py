"""Pulling from a hub on loopback: choosing, resuming, refusing; the models that are then on the machine."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.checkpoint_folder import write_folder
from support.hub_server import COMMIT, Hub
from support.tiny_model import Tiny
from test_cli import glmrun

from glmrun.cli.loading import resolve_model
from glmrun.store import hub as client
from glmrun.store.hub import Reference, RemoteFile, choose_files, is_plain_path, quantization_of
from glmrun.store.local import local_models, matching, remove
from quant.errors import UserError
from quant.publish import partial_path

FLASH = "ggml-org/GLM-4.7-Flash-GGUF"
BIG = bytes(range(256)) * 400  # 102,400 bytes


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user who has nothing yet and knows only the hub on loopback."""
    wanted = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "GLMRUN_MODELS": str(tmp_path / "models"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "PYTHONPATH": os.getcwd(),
    }  # fmt: skip
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    return {**os.environ}


def pull(home: dict[str, str], *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    return glmrun("pull", *arguments, env=home | more)


def refusal(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    lines = done.stderr.decode().splitlines()
    assert done.returncode == code and done.stdout == b"" and lines[-1].startswith("error: "), done
    assert sum(line.startswith("error: ") for line in lines) == 1 and "Traceback" not in done.stderr.decode()
    return lines[-1]


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of this test's size count as large."""
    monkeypatch.setattr(client, "LARGE", 1000)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_references() -> None:
    expected = Reference(FLASH, "Q4_K_M")
    for text in (f"{FLASH}:Q4_K_M", f"hf.co/{FLASH}:Q4_K_M", f"hf://{FLASH}:Q4_K_M", f"https://hub.example/{FLASH}:Q4_K_M"):
        assert Reference.parse(text) == expected
    assert Reference.parse("a/b@v1.0:Q8_0") == Reference("a/b", "Q8_0", "v1.0") and Reference.parse("a/b/") == Reference("a/b")
    for text in ("", "flash", "a/b/c", "../b", "a/..", "a/b:", "a b/c", "a/b\x1b[0m", "a/b--c", "-/..:x"):
        with pytest.raises(UserError) as refused:
            Reference.parse(text)
        assert refused.value.kind == "usage"


def test_quantizations_of_file_names() -> None:
    names = {
        "GLM-4.7-Flash-Q4_K_M.gguf": "Q4_K_M", "q8/glm.q8_0.gguf": "Q8_0", "GLM-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
        "GLM-BF16-00001-of-00002.gguf": "BF16", "GLM-IQ4_XS.gguf": "IQ4_XS", "nano.gguf": None, "GLM-4.7-Flash.gguf": None,
    }  # fmt: skip
    assert {name: quantization_of(name) for name in names} == names


def test_names_that_leave_their_folder() -> None:
    assert is_plain_path("a/b-c.gguf") and is_plain_path("naïve.gguf")
    for name in ("../x", "/x", "a//b", "a/../b", "a\\b", "x\x1b[31m.gguf", "x\u202e.gguf", ""):
        assert not is_plain_path(name)


def remote(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 10) for name in names]


def test_the_file_that_is_meant() -> None:
    files = remote("README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-F16.gguf", "bf/m-BF16-00002-of-00002.gguf", "bf/m-BF16-00001-of-00002.gguf")  # noqa: E501  # fmt: skip
    chosen = {q: [f.name for f in choose_files(Reference("a/b", q), files)] for q in (None, "q8_0", "BF16")}
    assert chosen == {
        None: ["m-Q4_K_M.gguf"],
        "q8_0": ["m-Q8_0.gguf"],
        "BF16": ["bf/m-BF16-00001-of-00002.gguf", "bf/m-BF16-00002-of-00002.gguf"],
    }
    assert [f.name for f in choose_files(Reference("a/b"), remote("only-Q6_K.gguf"))] == ["only-Q6_K.gguf"]
    both = remote("m-Q4_K_M.gguf", "m-MTP-Q4_K_M.gguf", "mtp-m-Q8_0.gguf")  # the prediction layer alone is no model
    assert [f.name for f in choose_files(Reference("a/b"), both)] == ["m-Q4_K_M.gguf"]
    assert [f.name for f in choose_files(Reference("a/b"), remote("m-MTP-Q4_K_M.gguf"))] == ["m-MTP-Q4_K_M.gguf"]
    for wrong, words in (
        (files, "has no Q5_K_M; there are BF16, Q4_K_M, Q8_0"),
        (remote("a-Q5_K_M.gguf", "b-Q5_K_M.gguf"), "2 files of Q5_K_M"),
        (remote("a-Q5_K_M-00001-of-00002.gguf"), "not all parts"),
        (remote("README.md", "config.json"), "neither"),
    ):
        with pytest.raises(UserError, match=words):
            choose_files(Reference("a/b", "Q5_K_M"), wrong)


def test_a_checkpoints_weights_are_what_its_index_may_name() -> None:
    """Shards of other names than model-00001-of-00002 were left behind; and a second form of the same weights is not wanted."""
    index, shards = (
        "model.safetensors.index.json",
        ("glm-00001-of-00002.safetensors", "glm-00002-of-00002.safetensors", "mtp.safetensors"),
    )
    more = ("consolidated.safetensors", "adapter_model.safetensors", "old/model.safetensors")
    chosen = choose_files(Reference("a/b"), remote("config.json", index, *shards, *more))
    assert [f.name for f in chosen] == ["config.json", index, *shards]
    whole = choose_files(Reference("a/b"), remote("config.json", index, "model.safetensors", *shards))
    assert [f.name for f in whole] == ["config.json", index, "model.safetensors"]
    with pytest.raises(UserError, match="neither"):
        choose_files(Reference("a/b"), remote("config.json", *shards))


# ---- pulling ---------------------------------------------------------------------------------------------------------


def test_pull_list_use_and_remove(home: dict[str, str], hub: Hub, tiny_gguf: Callable[..., Tiny]) -> None:
    data = tiny_gguf("Q8_0").path.read_bytes()
    hub.repos[FLASH] = {"README.md": b"# x", "GLM-4.7-Flash-Q8_0.gguf": data, "GLM-4.7-Flash-Q4_K_M.gguf": BIG}
    done = pull(home, f"hf.co/{FLASH}:q8_0", "-c", "512")
    path = Path(done.stdout.decode().strip())
    assert done.returncode == 0 and path.name == "GLM-4.7-Flash-Q8_0.gguf" and path.read_bytes() == data, done
    assert b"fits" in done.stderr and path.resolve().parent.name == "blobs" and COMMIT in path.parts
    before = len(hub.requests)
    again = pull(home, f"{FLASH}:Q8_0")
    assert again.stdout == done.stdout and not any(m == "GET" and "/resolve/" in p for m, p, _ in hub.requests[before:])
    assert {path for _, path, _ in hub.requests} <= {
        f"/api/models/{FLASH}/revision/main", f"/{FLASH}/resolve/main/{path.name}", f"/cdn/{FLASH}/resolve/main/{path.name}",
    }  # fmt: skip

    listed = json.loads(glmrun("list", "--json", env=home).stdout)
    assert [(m["name"], m["quantization"], m["bytes"], m["kind"]) for m in listed] == [
        ("nano", "Q8_0", None, "built in"),
        (f"{FLASH}:Q8_0", "Q8_0", len(data), "pulled"),
    ]
    assert f"{FLASH}:Q8_0".encode() in glmrun("ls", env=home).stdout
    for name in (f"{FLASH}:Q8_0", "flash", "q8_0"):
        facts = json.loads(glmrun("inspect", name, "--json", env=home).stdout)
        assert facts["file"] == str(path)
    assert glmrun("plan", "flash", "-c", "512", "--json", env=home).returncode == 0

    asked = glmrun("rm", "flash", env=home)
    assert b"add --yes" in asked.stderr and asked.returncode == 1 and path.exists()
    assert glmrun("rm", "FLASH", "--yes", env=home).returncode == 0
    assert not path.exists() and [m["name"] for m in json.loads(glmrun("list", "--json", env=home).stdout)] == ["nano"]
    assert not [p for p in Path(home["HF_HOME"]).rglob("*") if p.is_file() and p.stat().st_size == len(data)]


def test_a_broken_connection_goes_on_where_it_broke(home: dict[str, str], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    hub.repos["a/b"] = {"m-Q4_K_M.gguf": BIG}
    hub.break_after["m-Q4_K_M.gguf"] = [40_000, 10_000]
    told: list[tuple[str, int, int]] = []
    paths = fetch(Reference("a/b"), hub, lambda *step: told.append(step))
    assert paths[0].read_bytes() == BIG
    assert list(dict.fromkeys(hub.ranges("m-Q4_K_M.gguf"))) == [None, "bytes=40000-", "bytes=50000-"]
    assert told[-1] == ("m-Q4_K_M.gguf", len(BIG), len(BIG)) and [n for _, n, _ in told] == sorted(n for _, n, _ in told)


def fetch(reference: Reference, hub: Hub, report: client.Report = lambda what, done, total: None) -> list[Path]:
    """hub.download in this process, whose huggingface_hub was imported with another endpoint."""
    import huggingface_hub.constants as constants

    files = choose_files(reference, listed(hub, reference.repo))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        return client.download(reference, files, report)


def listed(hub: Hub, repo: str) -> list[RemoteFile]:
    return [RemoteFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in hub.repos[repo].items()]


def test_a_later_start_resumes(home: dict[str, str], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    hub.repos["a/b"] = {"m-Q4_K_M.gguf": BIG}
    hub.status = None
    blobs = client.cache_folder() / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{hashlib.sha256(BIG).hexdigest()}.glmrun.incomplete"
    partial.write_bytes(BIG[:70_000])
    assert client.bytes_missing(Reference("a/b"), listed(hub, "a/b")) == len(BIG) - 70_000
    assert fetch(Reference("a/b"), hub)[0].read_bytes() == BIG
    assert set(hub.ranges("m-Q4_K_M.gguf")) == {"bytes=70000-"} and not partial.exists()
    assert client.bytes_missing(Reference("a/b"), listed(hub, "a/b")) == 0


def test_what_arrives_damaged_is_refused(home: dict[str, str], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    hub.repos["a/b"] = {"m-Q4_K_M.gguf": BIG}
    hub.damaged.add("m-Q4_K_M.gguf")
    with pytest.raises(UserError, match="arrived damaged"):
        fetch(Reference("a/b"), hub)
    assert not [path for path in client.cache_folder().rglob("*") if path.is_file() and path.stat().st_size >= 1000]


def test_split_files_are_pulled_whole(home: dict[str, str], hub: Hub) -> None:
    parts = {f"q/m-Q4_K_M-{i:05}-of-00003.gguf": BIG + bytes([i]) for i in (1, 2, 3)}
    hub.repos["a/b"] = {**parts, "m-Q8_0.gguf": BIG}
    done = pull(home, "a/b")
    first = Path(done.stdout.decode().strip())
    assert done.returncode == 0 and first.name == "m-Q4_K_M-00001-of-00003.gguf", done
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(Path(name).name for name in parts)
    models = local_models()
    assert [(m.name, len(m.files), m.n_bytes) for m in models] == [("a/b:Q4_K_M", 3, 3 * len(BIG) + 3)]
    (first.parent / "m-Q4_K_M-00002-of-00003.gguf").unlink()
    assert local_models() == []


def test_a_checkpoint_is_converted(home: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "GLM-4.7-Flash")
    hub.repos["zai-org/GLM-4.7-Flash"] = {p.name: p.read_bytes() for p in folder.iterdir()} | {"training_args.bin": b"no"}
    done = pull(home, "zai-org/GLM-4.7-Flash", "--quant", "q6_k", "--yes")
    path = Path(done.stdout.decode().strip())
    assert done.returncode == 0 and path == Path(home["GLMRUN_MODELS"]) / "GLM-4.7-Flash-Q6_K.gguf" and path.is_file(), done
    assert not any("training_args" in p for _, p, _ in hub.requests)
    assert json.loads(glmrun("inspect", "flash-q6", "--json", env=home).stdout)["name"] == "GLM-4.7-Flash"
    names = [(m.name, m.kind) for m in local_models()]
    assert names == [("GLM-4.7-Flash-Q6_K", "converted"), ("zai-org/GLM-4.7-Flash", "checkpoint")]
    again = pull(home, "zai-org/GLM-4.7-Flash", "-q", "Q6_K", "-y")
    assert again.stdout == done.stdout and b"converted already" in again.stderr
    assert glmrun("rm", "zai-org/GLM-4.7-Flash", "-y", env=home).returncode == 0 and len(local_models()) == 1


def test_refusals_are_one_line(home: dict[str, str], hub: Hub) -> None:
    hub.repos = {FLASH: {"GLM-4.7-Flash-Q4_K_M.gguf": BIG}, "a/gated": {"m-Q4_K_M.gguf": BIG}}
    hub.gated.add("a/gated")
    assert "has no Q9_Z; there are Q4_K_M" in refusal(pull(home, f"{FLASH}:Q9_Z"), 3)
    assert "no model no/such" in refusal(pull(home, "no/such"), 3)
    assert "HF_TOKEN" in refusal(pull(home, "a/gated"), 1)
    assert pull(home, "a/gated", HF_TOKEN="hf_abc").returncode == 0
    assert "no revision nope" in refusal(pull(home, f"{FLASH}@nope"), 3)
    assert "names no model" in refusal(pull(home, "flash"), 2)
    assert "two quantizations" in refusal(pull(home, f"{FLASH}:Q4_K_M", "-q", "Q8_0"), 2)
    assert "HF_HUB_OFFLINE" in refusal(pull(home, FLASH, HF_HUB_OFFLINE="1"), 1)
    assert "can't be reached" in refusal(pull(home, FLASH, HF_ENDPOINT="http://127.0.0.1:9"), 1)
    hub.status = 418
    assert "HTTP 418" in refusal(pull(home, FLASH), 1)


def test_hostile_names_are_left_out(home: dict[str, str], hub: Hub) -> None:
    hub.repos["a/b"] = {"../../evil-Q4_K_M.gguf": BIG, "x\x1b[31m-Q4_K_M.gguf": BIG, "fine-Q4_K_M.gguf": BIG}
    done = pull(home, "a/b")
    assert done.returncode == 0 and done.stdout.strip().endswith(b"fine-Q4_K_M.gguf") and b"\x1b" not in done.stderr, done


def test_the_disk_is_checked_first(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"not enough disk space.*1,000,000,000,000,000 bytes needed"):
        client.check_disk(Reference("a/b"), [RemoteFile("x.gguf", 10**15)])
    client.check_disk(Reference("a/b"), [RemoteFile("x.gguf", 10)])


def test_each_disk_is_checked_for_what_goes_there(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A home on a small disk, and the cache on a large one."""
    models, there = Path("/elsewhere/models"), [RemoteFile("x.gguf", 100)]
    disk = lambda folder: SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=int(folder == models)))  # noqa: E731
    monkeypatch.setattr(client, "nearest", disk)
    monkeypatch.setattr(client, "free_disk", lambda folder: 150 if folder == models else 120)
    client.check_disk(Reference("a/b"), there, models, 140)
    with pytest.raises(UserError, match=rf"in {models}: 160 bytes needed, 150 free; GLMRUN_MODELS names another"):
        client.check_disk(Reference("a/b"), there, models, 160)
    with pytest.raises(UserError, match=r"240 bytes needed, 120 free; HF_HUB_CACHE"):  # one disk for both
        client.check_disk(Reference("a/b"), there, client.cache_folder(), 140)


def pull_on(machine: str, home: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The same on a machine that is described by assignments to parts of glmrun."""
    code = f"import sys, glmrun.machine as machine, glmrun.store.hub as hub, glmrun.cli as cli; {machine}; cli.main(sys.argv[1:])"
    line = [sys.executable, "-c", code, "pull", *arguments]
    return subprocess.run(line, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env=home)


def test_what_does_not_fit_is_asked_for(home: dict[str, str], hub: Hub) -> None:
    hub.repos["a/b"] = {"m-Q4_K_M.gguf": BIG}
    small = "machine.memory = lambda: machine.Memory(1 << 31, 1 << 31, False)"
    done = pull_on(small, home, "a/b")
    assert "--yes says yes" in refusal(done, 1) and "does not fit, a context of" in done.stderr.decode()
    assert not hub.ranges("m-Q4_K_M.gguf")
    assert "this model takes at most 202,752" in refusal(pull(home, "a/b", "-c", "999M"), 2)
    assert pull_on(small, home, "a/b", "--dry-run").returncode == 0 and not hub.ranges("m-Q4_K_M.gguf")
    assert pull_on(small, home, "a/b", "--yes").returncode == 0


def test_a_converted_checkpoint_asks_for_no_room(home: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = {p.name: p.read_bytes() for p in write_folder(tmp_path / "b").iterdir()}
    there = Path(home["GLMRUN_MODELS"], "b-Q4_K_M.gguf")
    full = "hub.free_disk = lambda folder: 10"
    assert "not enough disk space" in refusal(pull_on(full, home, "a/b"), 1)
    there.parent.mkdir()
    fits = f"hub.free_disk = lambda folder: {sum(map(len, hub.repos['a/b'].values()))}"
    assert "not enough disk space" in refusal(pull_on(fits, home, "a/b", "--dry-run"), 1)
    partial_path(there).write_bytes(bytes(1 << 24))  # what an interrupted conversion has written needs no room again
    assert pull_on(fits, home, "a/b", "--dry-run").returncode == 0
    there.touch()
    done = pull_on(full, home, "a/b:Q4_K_M", "-q", "q4_k_m")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{there}\n", b"converted already\n")


# ---- models that are here --------------------------------------------------------------------------------------------


def test_part_of_a_name(home: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(home["GLMRUN_MODELS"])
    folder.mkdir()
    for name in ("GLM-4.7-Flash-Q4_K_M", "GLM-4.7-Flash-Q8_0", "GLM-4.7-Flash-Q8_0-mine", "a\x1b[31m"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF")
    assert resolve_model("q4_k").name == "GLM-4.7-Flash-Q4_K_M.gguf" and "using GLM-4.7-Flash-Q4_K_M" in capsys.readouterr().err
    assert resolve_model("GLM-4.7-flash-q8_0").name == "GLM-4.7-Flash-Q8_0.gguf" and capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"q8_0 can mean GLM-4\.7-Flash-Q8_0, GLM-4\.7-Flash-Q8_0-mine; write more"):
        resolve_model("q8_0")
    with pytest.raises(UserError, match="no such file") as missing:
        resolve_model("q2")
    assert missing.value.kind == "missing" and matching("", local_models()) == []
    assert b"\x1b" not in glmrun("list", env=home).stdout


def test_a_split_file_is_one_model(home: dict[str, str]) -> None:
    """Each part was one: none could be run by its name, and rm left the others."""
    folder = Path(home["GLMRUN_MODELS"])
    folder.mkdir()
    parts = [folder / f"m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path in [*parts, folder / "torn-00001-of-00002.gguf"]:
        path.write_bytes(b"GGUF")
    found = local_models()
    assert [(m.name, m.files, m.n_bytes, m.quantization) for m in found] == [("m-Q4_K_M", tuple(parts), 12, "Q4_K_M")]
    assert resolve_model("m-q4_k_m") == parts[0]
    remove(found[0])
    assert not any(path.exists() for path in parts)


def test_a_file_of_two_revisions_is_listed_once(home: dict[str, str]) -> None:
    repo = client.cache_folder() / "models--a--b"
    for i, commit in enumerate(("1" * 40, "2" * 40)):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "blobs").mkdir(exist_ok=True)
        (repo / "blobs" / commit).write_bytes(bytes(i + 1))
        os.symlink(f"../../blobs/{commit}", repo / "snapshots" / commit / "m-Q4_K_M.gguf")
        os.utime(repo / "snapshots" / commit, (i, i))
    (repo / "snapshots" / ("2" * 40) / "gone-Q8_0.gguf").symlink_to("../../blobs/nothing")
    assert [(m.name, m.n_bytes) for m in local_models()] == [("a/b:Q4_K_M", 2)]
