"""The house style as tests: layers, names, sizes, purity (tigerbeetle `src/tidy.zig`)."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 500, 80

# What each package may import of ours (one way only, siblings never).
LAYERS = {
    "chain": set(),
    "tiles": {"chain"},
    "consensus": {"tiles", "chain"},
    "wallet": {"tiles", "chain"},
    "learning": {"tiles", "chain"},
    "corpus": {"tiles", "chain"},
    "node": {"learning", "corpus", "consensus", "wallet", "tiles", "chain"},
}
# What only some modules may import, outside node/.
DISK = {"os", "pathlib", "sqlite3", "mmap", "shutil", "tempfile", "fcntl", "threading"}
TILE_STORE = (
    *("catalog", "disk", "libc", "load", "mapping", "reader", "slots", "store"),
    *("scrubbing", "upkeep", "writer", "writing"),
)
ON_DISK = {
    "chain/store.py",
    *(f"chain/store_{part}.py" for part in ("migrations", "pruning", "rows", "schema", "tree")),
    *(f"tiles/store/{name}.py" for name in TILE_STORE),
    "tiles/shardfile.py",  # maps the store's files
    "wallet/keystore.py",
    "corpus/ingest.py",  # reads what a contributor names
    "learning/profile.py",  # sets environment variables of the BLAS before torch is loaded
}
OUTSIDE = {
    *("asyncio", "socket", "ssl", "select", "selectors", "http", "urllib", "httpx", "trio"),
    *("libp2p", "uvloop", "uvicorn", "fastapi", "starlette", "multiaddr", "subprocess", "signal"),
    *("time", "datetime", "random", "secrets", "uuid"),
}
HEAVY = {"torch": {"learning", "node/worker"}, "libp2p": {"node/net"}, "trio": {"node/net"}}
BANNED_NAMES = re.compile(r"(^|_)(utils?|helpers?|managers?|processors?|misc|common)(_|$)")
INTEGER_ONLY = ("chain", "consensus", "tiles")
# A delta begins as fp32; every operation on it rounds once, so auditors get the same bytes.
MAY_USE_FLOATS = {
    "tiles/delta.py",
    *(f"tiles/store/{name}.py" for name in TILE_STORE),  # paths: / joins them
}
MACHINE_PATHS = re.compile(r"(?<![\w.$~])/(home|root|work|Users)/[\w.-]+")
REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch\.org")


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the repository, or of the directory if it is no repository."""
    asked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode == 0:
        return tuple(p for n in asked.stdout.split("\0") if n and (p := ROOT / n).is_file())
    return tuple(p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name_of(path))


def product() -> Iterator[Path]:
    for path in tracked():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in LAYERS:
            yield path


def sources() -> Iterator[Path]:
    """All Python of the repository, tests included."""
    yield from (path for path in tracked() if path.suffix == ".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of imported modules; `from a import b` counts as `a.b`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


def test_imports_run_one_way() -> None:
    wrong = [
        f"{name_of(path)} imports {module}"
        for path in product()
        for module in imports(path)
        if top(module) in LAYERS
        and top(module) != (own := path.relative_to(ROOT).parts[0])
        and top(module) not in LAYERS[own]
    ]
    assert not wrong


def test_products_do_not_import_tests() -> None:
    wrong = [name_of(p) for p in product() for m in imports(p) if top(m) in ("tests", "bench")]
    assert not wrong


def test_only_the_node_touches_the_world() -> None:
    wrong = []
    for path in product():
        name = name_of(path)
        if not name.startswith("node/"):
            found = {top(module) for module in imports(path)}
            banned = OUTSIDE if name in ON_DISK else OUTSIDE | DISK
            wrong += [f"{name} imports {module}" for module in sorted(found & banned)]
    assert not wrong


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_heavy_libraries_stay_where_they_belong(library: str) -> None:
    wrong = [
        name_of(path)
        for path in product()
        if any(top(module) == library for module in imports(path))
        and not name_of(path).startswith(tuple(HEAVY[library]))
    ]
    assert not wrong


def test_every_package_is_listed() -> None:
    """setuptools installs only the packages that pyproject.toml names one by one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = settings["tool"]["setuptools"]["packages"]
    found = {name_of(path.parent).replace("/", ".") for path in product()}
    assert sorted(listed) == sorted(found)


def test_names_say_what_things_are() -> None:
    wrong = [
        name_of(path)
        for path in sources()
        if any(BANNED_NAMES.search(part) for part in path.relative_to(ROOT).with_suffix("").parts)
    ]
    assert not wrong


def test_modules_hold_one_idea() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in sources()}
    assert not {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES}


def test_functions_fit_a_screen() -> None:
    wrong = []
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > MAX_FUNCTION_LINES:
                    wrong.append(f"{name_of(path)}:{node.lineno} {node.name}: {size} lines")
    assert not wrong


def test_product_code_uses_invariant() -> None:
    """`python -O` drops asserts; `chain.errors.invariant` stays."""
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in product()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong


def test_nothing_is_swallowed() -> None:
    wrong = []
    for path in product():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name)
                    and node.type.id in ("Exception", "BaseException")
                )
                silent = all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
                if node.type is None or (broad and silent):
                    wrong.append(f"{name_of(path)}:{node.lineno}")
    assert not wrong


def test_no_mocks_in_the_product() -> None:
    wrong = [name_of(p) for p in product() for m in imports(p) if "mock" in m.lower()]
    assert not wrong


def test_signatures_have_one_verifier() -> None:
    """OpenSSL accepts keys that libsodium refuses: two verdicts on one signature are a fork."""
    verifiers = re.compile(r"\b(VerifyKey|crypto_sign_open|Ed25519PublicKey|\w+_verify_detached)\b")
    wrong = [
        f"{name_of(path)}: {found}"
        for path in product()
        if name_of(path) != "chain/crypto.py"
        for found in verifiers.findall(path.read_text())
    ]
    assert not wrong


def test_consensus_code_computes_in_integers() -> None:
    wrong = []
    for path in product():
        name = name_of(path)
        if not name.startswith(INTEGER_ONLY) or name in MAY_USE_FLOATS:
            continue
        for node in ast.walk(parsed(path)):
            literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
            divides = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
            called = isinstance(node, ast.Name) and node.id == "float"
            if literal or divides or called:
                wrong.append(f"{name}:{node.lineno}")
    assert not wrong


def test_consensus_code_does_not_iterate_over_sets() -> None:
    """The order of a set differs between processes: sort it first."""
    wrong = []
    for path in product():
        if name_of(path).startswith(INTEGER_ONLY):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.For | ast.comprehension):
                    it = node.iter
                    called = isinstance(it, ast.Call) and isinstance(it.func, ast.Name)
                    if isinstance(it, ast.Set | ast.SetComp) or (
                        called and it.func.id in ("set", "frozenset")  # type: ignore[attr-defined]
                    ):
                        wrong.append(f"{name_of(path)}:{it.lineno}")
    assert not wrong


def test_tests_do_not_sleep() -> None:
    """Waiting has one place: tests/kit/waiting.py polls a condition until a deadline."""
    sleep = re.compile(r"\b(time|asyncio|trio)\.sleep\((?!0\))")
    wrong = [
        f"{name_of(path)}:{number}"
        for path in sources()
        if name_of(path).startswith("tests/") and name_of(path) != "tests/kit/waiting.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if sleep.search(line) and path != Path(__file__)
    ]
    assert not wrong


def test_every_vector_file_is_used() -> None:
    """A vector that no test opens proves nothing (lighthouse `check_all_files_accessed.py`).

    A test names the file, or goes through all files of its directory.
    """
    tests = [p.read_text() for p in sources() if re.match(r"tests/(?!reference)", name_of(p))]
    vectors = [p for p in tracked() if name_of(p).startswith("tests/vectors/")]

    def used(path: Path) -> bool:
        part = path.parent.name
        return any(
            re.search(rf"\b{re.escape(path.stem)}\b", text)
            or ('.glob("*.json")' in text and re.search(rf"\b{part}", text))
            for text in tests
        )

    assert vectors
    assert not [name_of(path) for path in vectors if not used(path)]


def _texts() -> Iterator[tuple[str, str]]:
    for path in tracked():
        if path == Path(__file__) or path.suffix in (".png", ".ico", ".woff2", ".bin", ".xz"):
            continue
        yield name_of(path), path.read_text(errors="replace")


def test_no_path_or_registry_of_one_machine() -> None:
    wrong = [
        f"{name}: {found.group()}"
        for name, text in _texts()
        for pattern in (MACHINE_PATHS, REGISTRIES)
        if (found := pattern.search(text))
    ]
    assert not wrong


def test_links_between_pages_hold() -> None:
    wrong = [
        f"{name_of(path)}: {target}"
        for path in tracked()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not wrong


def test_docstrings_name_pages_that_exist() -> None:
    wrong = [
        f"{name_of(path)}: {page}"
        for path in sources()
        for page in re.findall(r"docs/[\w/.-]+\.md", path.read_text())
        if not (ROOT / page).is_file()
    ]
    assert not sorted(set(wrong))


def test_spec_pages_say_why() -> None:
    pages = [p for p in tracked() if name_of(p).startswith("docs/spec/")]
    wrong = [name_of(p) for p in pages if not re.search(r"^## Why", p.read_text(), re.MULTILINE)]
    assert pages
    assert not wrong
