"""Settings: a flag beats a GLMRUN_* variable, which beats the config file, which beats the default.

One table says what there is. Typer reads the variables and takes what the file says as the options' defaults; this module reads
the file, proves it, and tells where each value comes from.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from quant.errors import UserError
from quant.text import decode_text

MAX_BYTES = 1 << 20  # of the config file


@dataclass(frozen=True)
class Setting:
    """A key of the config file; GLMRUN_<KEY> is its variable, parameter the commands' argument of that meaning."""

    key: str
    parameter: str
    kind: type | tuple[type, ...]
    expected: str
    default: str
    least: float | None = None
    most: float | None = None

    @property
    def variable(self) -> str:
        return f"GLMRUN_{self.key.upper()}"


SETTINGS = {
    s.key: s
    for s in (
        Setting("model", "model", str, "a text", "nano"),
        Setting("context", "ctx", (int, str), 'a number or a text like "32k"', "32,768, or what the model takes", 1),
        Setting("threads", "threads", int, "a whole number", "one per core", 1),
        Setting("kv_type", "kv_type", str, "a text", "f16, f32 where no matrix is quantized"),
        Setting("url", "url", str, "a text", "none: the model runs here"),
        Setting("draft", "draft", str, "a text", "auto"),
        Setting("draft_exact", "draft_exact", bool, "true or false", "false"),
        Setting("system", "system", str, "a text", "none"),
        Setting("think", "think", bool, "true or false", "true"),
        Setting("think_budget", "think_budget", int, "a whole number", "no limit", 0),
        Setting("preserve_thinking", "preserve_thinking", bool, "true or false", "true"),
        Setting("preset", "preset", str, "a text", "none"),
        Setting("max_tokens", "max_tokens", int, "a whole number", "no limit", 1),
        Setting("temperature", "temp", (int, float), "a number", "the model file's value, else 1.0", 0),
        Setting("top_p", "top_p", (int, float), "a number", "the model file's value, else 0.95", 0, 1),
        Setting("top_k", "top_k", int, "a whole number", "the model file's value, else 0", 0),
        Setting("min_p", "min_p", (int, float), "a number", "the model file's value, else 0.01", 0, 1),
        Setting("repeat_penalty", "repeat_penalty", (int, float), "a number", "the model file's value, else 1.0", 0),
        Setting("seed", "seed", int, "a whole number", "another one each time"),
        Setting("log", "log", bool, "true or false", "true"),
        Setting("history", "history", bool, "true or false", "true"),
        Setting("keep_cache", "keep_cache", bool, "true or false", "false"),
        Setting("vi", "vi", bool, "true or false", "false"),
        Setting("host", "host", str, "a text", "127.0.0.1"),
        Setting("port", "port", int, "a whole number", "8080", 0, 65535),
        Setting("served_model_name", "served_name", str, "a text", "the model file's"),
        Setting("parallel", "slots", int, "a whole number", "4", 1, 16),
        Setting("cache_ram", "cache_ram", str, 'a text like "8G"', "a quarter of what is free"),
        Setting("cache_disk", "cache_disk", str, "a text", "none: only memory"),
        Setting("cache_disk_size", "cache_disk_size", str, 'a text like "8G"', "8G"),
        Setting("timeout", "answer_timeout", int, "a whole number", "3600", 1),
        Setting("reasoning_field", "reasoning_field", str, "a text", "both"),
        Setting("metrics_prefix", "metrics_prefix", str, "a text", "glmrun:"),
        Setting("log_format", "log_format", str, "a text", "text"),
    )
}
# Variables that have no key: where things are.
PLACES = {
    "GLMRUN_CONFIG": "the config file",
    "GLMRUN_CACHE_DIR": "compiled kernels, nano's files, the measured bandwidth",
    "GLMRUN_MODELS": "converted models",
    "HF_HUB_CACHE": "pulled models",
}
_MORE = ("GLMRUN_API_KEY", "GLMRUN_URL", "GLMRUN_SIMD")  # servers, and a CPU to imitate


def variable(key: str) -> str:
    """The variable of a key; a KeyError for one that is not in the table."""
    return SETTINGS[key].variable


def config_path() -> Path:
    """The config file: GLMRUN_CONFIG, or config.toml in the system's place for a user's settings."""
    import platformdirs

    return Path(os.path.expanduser(os.environ.get("GLMRUN_CONFIG") or f"{platformdirs.user_config_dir('glmrun')}/config.toml"))


@dataclass(frozen=True)
class ConfigFile:
    """What the file says; lines as {key: line number}. Both are empty where there is no file."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]


def read_config() -> ConfigFile:
    """The config file, proven against the table. Raises UserError that names the line of what is wrong."""
    return _read(config_path())


def _read(path: Path, more: tuple[str, ...] = ()) -> ConfigFile:
    """A file of settings, and of more keys that hold a text."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ConfigFile(path, {}, {})
    except OSError as why:
        if "GLMRUN_CONFIG" not in os.environ and not os.access(path.parent, os.X_OK):  # another user's home
            return ConfigFile(path, {}, {})
        raise UserError(f"{path}: {why.strerror}; GLMRUN_CONFIG names another file") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes; it should be a few lines")
    try:
        text = raw.decode("utf-8-sig")
        values = tomllib.loads(text)
    except UnicodeDecodeError as why:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            decode_text(raw, str(path))
        raise UserError(f"{path}: line {raw[: why.start].count(10) + 1}: not valid UTF-8", "usage") from None
    except (tomllib.TOMLDecodeError, RecursionError) as why:
        raise UserError(f"{path}: not valid TOML: {why}", "usage") from None
    lines = {key: _line_of(key, text) for key in values}
    for key, value in values.items():
        if key in more and not isinstance(value, str):
            raise UserError(f"{path}: line {lines[key]}: {key} is {str(value)[:60]!r}; a text is expected", "usage")
        if key not in more:
            _check(f"{path}: line {lines[key]}", key, value)
    return ConfigFile(path, values, lines)


def _line_of(key: str, text: str) -> int:
    """The number of the line that a top-level key or table begins on."""
    found = re.search(rf"""^[ \t]*\[*[ \t]*["']?{re.escape(key)}["']?[ \t]*[]=.]""", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _check(where: str, key: str, value: Any) -> None:
    setting = SETTINGS.get(key)
    if setting is None:
        raise UserError(f"{where}: there is no setting {key!r}; there are {', '.join(SETTINGS)}", "usage")
    kinds = setting.kind if isinstance(setting.kind, tuple) else (setting.kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{where}: {key} is {str(value)[:60]!r}; {setting.expected} is expected", "usage")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(f"{where}: {key}", setting, value)


def _check_range(what: str, setting: Setting, value: float) -> None:
    low, high = setting.least, setting.most
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{what} is {value}; {limits} is expected", "usage")


def defaults() -> dict[str, Any]:
    """{argument of a command: value} of all that the config file sets, as Typer takes defaults; the model is default_model()'s.

    Raises UserError also for a variable that holds no value of its kind: Typer would name the option, not the variable.
    """
    for setting in SETTINGS.values():
        if text := os.environ.get(setting.variable):
            _check_variable(setting, text)
    values = {key: value for key, value in read_config().values.items() if key != "model"}
    return {SETTINGS[key].parameter: value if isinstance(value, bool) else str(value) for key, value in values.items()}


def personas_folder() -> Path:
    """Where personas stand, a TOML file each; it may be missing."""
    return config_path().parent / "personas"


def persona(name: str) -> dict[str, Any]:
    """{argument of a command: value} of a persona: keys of the config file, and tools, a file beside it. Raises UserError."""
    path = personas_folder() / f"{name}.toml"
    if not re.fullmatch(r"\w[\w.-]*", name) or not path.is_file():
        known = ", ".join(found.stem for found in sorted(personas_folder().glob("*.toml"))) or "none yet"
        raise UserError(f"there is no persona {name} in {personas_folder()} ({known})", "missing")
    values = dict(_read(path, ("tools",)).values)
    tools = values.pop("tools", None)
    if "model" in values:
        raise UserError(f"{path}: a persona names no model; name it on the command line", "usage")
    found = {SETTINGS[key].parameter: value if isinstance(value, bool) else str(value) for key, value in values.items()}
    return found | ({"tools_file": str(path.parent / tools)} if tools is not None else {})


def misspelt() -> list[str]:
    """A line for each variable that begins like ours and is none of ours."""
    known = {*PLACES, *_MORE, *(setting.variable for setting in SETTINGS.values())}
    lines = []
    for name in sorted(name for name in os.environ if name.startswith("GLMRUN_") and name not in known):
        near = get_close_matches(name, known, 1)
        hint = f"; do you mean {near[0]}?" if near else " (glmrun config lists what does)"
        lines.append(f"{name} means nothing to glmrun{hint}")
    return lines


def _check_variable(setting: Setting, text: str) -> None:
    if setting.key == "context" and not re.fullmatch(r"[1-9]\d{0,11}[kKmM]?", text):
        raise UserError(f"{setting.variable} is {text!r}, which is not a size; write it like 8192, 32k or 64K", "usage")
    if setting.kind not in (int, (int, float)):
        return
    try:
        value = int(text) if setting.kind is int else float(text)
    except ValueError:
        raise UserError(f"{setting.variable} is {text!r}; {setting.expected} is expected", "usage") from None
    _check_range(setting.variable, setting, value)


def default_model() -> str | None:
    """The MODEL that commands take when none is given: GLMRUN_MODEL or the config file's; None for nano."""
    return os.environ.get(variable("model")) or read_config().values.get("model") or None


def origins() -> list[tuple[str, str, str]]:
    """(key, value, where it comes from) of every setting, flags aside."""
    config, rows = read_config(), []
    for key, setting in SETTINGS.items():
        if os.environ.get(setting.variable):
            rows.append((key, os.environ[setting.variable], setting.variable))
        elif key in config.values:
            value = config.values[key]
            text = str(value).lower() if isinstance(value, bool) else str(value)
            rows.append((key, text, f"{config.path}, line {config.lines[key]}"))
        else:
            rows.append((key, setting.default, "default"))
    return rows
