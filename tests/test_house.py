"""The order of the house: imports go down, nothing goes in circles, functions are short and take few positional arguments."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlaif_jax"
# Each package may import those before it, and itself.
ORDER = (
    "errors", "state_files", "ranges", "terminal", "language", "sharding", "algorithms", "models", "sampling", "data", "feedback",
    "rewards", "trainers", "evaluation", "config", "runs", "stages", "plan", "commands", "cli",
)  # fmt: skip
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path) for path in TREES}


def _imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions; not those for type checkers alone."""
    found = set()
    typing_only = {
        id(node) for block in ast.walk(TREES[path]) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }  # fmt: skip
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlaif_jax" and id(node) not in typing_only:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def test_imports_go_downwards_without_exception():
    rank = {name: i for i, name in enumerate(ORDER)}
    for path in TREES:
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if here == "__init__":  # the public face, which imports a name when it is first used
            continue
        for there in _imports(path):
            if there == "rlaif_jax":  # its version
                continue
            assert rank[there.split(".")[1]] <= rank[here], f"{path.relative_to(ROOT)} imports {there}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {_name(path): _imports(path) - {_name(path), "rlaif_jax"} for path in TREES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_root_holds_the_face_the_command_the_errors_and_the_files_of_state():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == ["__init__", "cli", "errors", "ranges", "state_files", "terminal"]


def _functions(tree: ast.AST, inside: tuple[str, ...] = (), outers: tuple[ast.AST, ...] = ()):
    """(names from the outside in, nodes around it, node) of every function."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        trail = (*inside, node.name) if named else inside
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield trail, outers, node
        yield from _functions(node, trail, (*outers, node) if named else outers)


def test_functions_have_60_lines_at_most():
    for path, tree in TREES.items():
        for trail, _, node in _functions(tree):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{path.relative_to(ROOT)}:{node.lineno} {'.'.join(trail)} has {lines} lines"


def test_public_functions_take_six_positional_arguments_at_most():
    long = []
    for path, tree in TREES.items():
        for trail, outers, node in _functions(tree):
            inner = any(isinstance(outer, ast.FunctionDef) for outer in outers)
            if inner or any(name.startswith("_") and name != "__init__" for name in trail):
                continue
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args) if arg.arg not in ("self", "cls")]
            if len(names) > 6:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {'.'.join(trail)}({', '.join(names)})")
    assert not long, "\n".join(long)
