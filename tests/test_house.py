"""The house keeps its shape: which room may import which, sizes, and what is said where.

Nothing is imported here: the source is read. An import inside a function or under TYPE_CHECKING counts as any other.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, PARAMETERS, KERNEL_PARAMETERS, COMMAND_LINES, TOP_FILES = 400, 8, 10, 40, 8

# Room -> the rooms that it may import; all may import quant, and quant nothing but itself.
MAY_IMPORT = {
    "quant": "",
    "machine": "",
    "settings": "machine",
    "kernels/simd": "machine",
    "kernels": "kernels/simd machine",
    "forward": "kernels",
    "gguf": "machine",
    "tensors": "gguf kernels machine",
    "chat": "machine",
    "store": "machine settings",
    "engine": "chat forward gguf kernels machine tensors",
    "warmup": "forward kernels machine",
    "api": "engine gguf kernels store tensors warmup",
    "measure": "api chat engine gguf kernels kernels/simd machine store tensors",
    "terminal": "chat",
    "repl": "chat engine machine store terminal",
    "server": "chat engine machine",
    "cli": "api chat engine gguf kernels machine measure repl server settings store terminal warmup",
    "main": "cli",
}
# Library -> the only rooms that may import it.
ONLY_IN = {
    "rich": "terminal repl cli",
    "prompt_toolkit": "terminal repl",
    "typer": "cli",
    "starlette": "server",
    "uvicorn": "server",
    "prometheus_client": "server",
    "gguf": "quant",
    "safetensors": "quant",
    "filelock": "quant",
    "llguidance": "engine",
    "jinja2": "chat",
    "tokenizers": "chat",
    "huggingface_hub": "store",
    "numba": "quant/blocks kernels/simd kernels forward",
    "llvmlite": "quant/blocks kernels/simd kernels forward",
}
# Protocol -> what claims to fulfil it.
CLAIMS = {
    "Source": ["Checkpoint", "GGUFSource"],
    "ChatModel": ["Model", "RemoteModel", "ScriptedModel"],
    "Interface": ["OpenAIChat", "Messages", "Responses", "OllamaChat", "OllamaGenerate"],
    "Writer": ["ChatWriter", "CompletionWriter", "MessageWriter", "ResponseWriter", "LineWriter"],
    "Shelf": ["DiskCache"],
}
# What is not true yet. An entry that is no longer needed fails: this table only gets shorter.
KNOWN: dict[str, set[str]] = {
    "prints": {
        "glmrun/kernels/compiled/self_test.py",
    },
}


def product() -> list[Path]:
    return sorted([*(ROOT / "glmrun").rglob("*.py"), *(ROOT / "quant").rglob("*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room(name: str) -> str:
    """The room of a file, or of a module that is written with slashes."""
    parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
    if parts[0] == "quant":
        return "quant"
    if len(parts) == 1:
        return "api"
    if parts[1] == "__main__":
        return "main"
    return "kernels/simd" if parts[1:3] == ["kernels", "simd"] else parts[1]


def module_file(module: str) -> str | None:
    """The file of a dotted module of ours."""
    place = module.strip(".").replace(".", "/")
    return next((file for file in (f"{place}.py", f"{place}/__init__.py") if (ROOT / file).exists()), None)


def imports(path: Path) -> Iterator[str]:
    """What a file imports: files of ours, the first word of another library's name. The version's number is free to all."""
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: imports are written in full"
            names = [(node.module or "", alias.name) for alias in node.names if alias.name != "__version__"]
        for module, name in names:
            if module.split(".")[0] in ("glmrun", "quant"):
                file = module_file(f"{module}.{name}") or module_file(module)
                assert file, f"{name_of(path)} imports {module}, which is not there"
                if file != name_of(path):
                    yield file
            else:
                yield module.split(".")[0]


def arrows() -> Iterator[str]:
    for path in product():
        here = room(name_of(path))
        allowed = {here, "quant", *MAY_IMPORT[here].split()}
        for imported in set(imports(path)):
            if imported.endswith(".py") and room(imported) not in allowed:
                yield f"{name_of(path)} imports {imported}"


def libraries() -> Iterator[str]:
    for path in product():
        name = name_of(path)
        here = "quant/blocks" if name.startswith("quant/blocks/") else room(name)
        for library in set(imports(path)) & set(ONLY_IN):
            if here not in ONLY_IN[library].split():
                yield f"{name} imports {library}"


def circles() -> Iterator[str]:
    """Groups of files that import each other, directly or not."""
    edges = {name_of(path): {file for file in imports(path) if file.endswith(".py")} for path in product()}
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen, waiting = set[str](), list(edges[start])
        while waiting:
            if (file := waiting.pop()) not in seen:
                seen.add(file)
                waiting += edges.get(file, ())
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in edges if a in reach[a]}
    for group in groups:
        yield " <-> ".join(sorted(group))


def long_files() -> Iterator[str]:
    for path in sorted([*product(), *(p for part in ("scripts", "tests", "benchmarks") for p in (ROOT / part).rglob("*.py"))]):
        if len(path.read_text().splitlines()) > FILE_LINES:
            yield name_of(path)


def long_signatures() -> Iterator[str]:
    """Functions with too many parameters; a command's page declares one for each option of the command line."""
    for path in product():
        name = name_of(path)
        compiled = room(name) in ("kernels", "kernels/simd", "forward") or name.startswith("quant/blocks/")
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = [argument for argument in given if argument.arg not in ("self", "cls")]
            command = room(name) == "cli" and any("options." in ast.unparse(a.annotation) for a in given if a.annotation)
            if len(given) > (KERNEL_PARAMETERS if compiled else PARAMETERS) and not command:
                yield f"{name}: {node.name}"


def long_commands() -> Iterator[str]:
    """Functions of the command line whose statements take too many lines; their signatures and docstrings are the help."""
    for path in product():
        for node in ast.walk(tree(path)) if room(name_of(path)) == "cli" else ():
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (node.end_lineno or 0) - body[0].lineno >= COMMAND_LINES:
                    yield f"{name_of(path)}: {node.name}"


def instructions() -> Iterator[str]:
    for path in product():
        if room(name_of(path)) != "kernels/simd" and re.search(r"llvm\.(x86|aarch64|arm)\b", path.read_text()):
            yield name_of(path)


def texts(path: Path) -> Iterator[str]:
    """The texts of a file but for its docstrings; a formatted one with a space for each value."""
    inside = set[int]()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def flags() -> Iterator[str]:
    """Sentences that name an option of the command line in a room that does not know of one."""
    flag = re.compile(r"(?<![\w-])(--[a-z][a-z-]+|-[a-z])(?![\w-])")
    for path in product():
        if room(name_of(path)) in ("cli", "repl", "main"):
            continue
        for text in texts(path):
            if " " in text and (found := flag.search(text)):
                yield f"{name_of(path)}: {found[0]}"


def prints() -> Iterator[str]:
    """print() to the screen; a stream that a caller handed over is his."""
    for path in product():
        if room(name_of(path)) in ("cli", "repl", "terminal"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                to = next((ast.unparse(word.value) for word in node.keywords if word.arg == "file"), "sys.stdout")
                if to.startswith("sys."):
                    yield name_of(path)


def members(node: ast.ClassDef) -> dict[str, ast.FunctionDef | None]:
    """The public names of a class's instances: methods, fields, and what a method sets."""
    found: dict[str, ast.FunctionDef | None] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and ast.unparse(part.value) == "self":
            found.setdefault(part.attr, None)
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found[part.target.id] = None
        elif isinstance(part, ast.FunctionDef):
            found[part.name] = None if any("property" in ast.unparse(mark) for mark in part.decorator_list) else part
    return {name: method for name, method in found.items() if not name.startswith("_")}


def takes(method: ast.FunctionDef, wanted: ast.FunctionDef) -> bool:
    """Whether a method can be called as the protocol's."""
    names = {argument.arg for argument in [*method.args.args, *method.args.kwonlyargs]}
    asked = {argument.arg for argument in [*wanted.args.args, *wanted.args.kwonlyargs]}
    return method.args.kwarg is not None or asked <= names


def unfulfilled() -> Iterator[str]:
    classes: dict[str, list[ast.ClassDef]] = {}
    for path in [*product(), *(ROOT / "tests" / "support").glob("*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    protocols = [
        node
        for path in product()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
    ]
    for protocol in protocols:
        if protocol.name not in CLAIMS:
            yield f"{protocol.name}: CLAIMS does not say who fulfils it"
            continue
        for claimer in CLAIMS[protocol.name]:
            assert len(classes.get(claimer, ())) == 1, f"{claimer}: one class of that name expected"
            has = members(classes[claimer][0])
            for name, wanted in members(protocol).items():
                if name not in has or (wanted is not None and (method := has[name]) is not None and not takes(method, wanted)):
                    yield f"{claimer} lacks {protocol.name}.{name}"
    for name in set(CLAIMS) - {protocol.name for protocol in protocols}:
        yield f"{name}: CLAIMS names it, and it is not there"


def top_files() -> Iterator[str]:
    files = sorted(path.name for path in (ROOT / "glmrun").iterdir() if path.is_file() and not path.name.startswith("."))
    if len(files) > TOP_FILES:
        yield f"glmrun/ has {len(files)} files: {', '.join(files)}"


RULES = (
    arrows, libraries, circles, long_files, long_signatures, long_commands, instructions, flags, prints, unfulfilled, top_files,
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_shape(rule) -> None:
    found, known = set(rule()), KNOWN.get(rule.__name__, set())
    assert not found - known, "not as the house rules say"
    assert not known - found, "true by now: take it out of KNOWN"


def test_every_room_is_in_the_table() -> None:
    assert {room(name_of(path)) for path in product()} <= set(MAY_IMPORT)
    assert set(KNOWN) <= {rule.__name__ for rule in RULES}
