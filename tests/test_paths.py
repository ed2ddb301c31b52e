"""No path that a user gives becomes a `pathlib.Path`, which turns gs://bucket into gs:/bucket."""

import ast
import re
from pathlib import Path

import pytest

import seva_jax

PACKAGE = Path(seva_jax.__file__).parent
WHOLE = ("runtime/stores.py", "runtime/copies.py")  # make paths of either kind

# Arguments of `Path` that can only be local, by file. Constants, `__file__` and temporary folders
# need no line here.
LOCAL = {
    ("config/config_files.py", "spec.origin"): "a module of this interpreter",
    ("config/source.py", "sys.modules[top].__file__ or file"): "a module of this interpreter",
    ("data/preferences.py", "folder"): "part of a name inside the image folder",
    ("images/load.py", "root"): "symbolic links, which only local folders have",
    ("images/load.py", "x"): "folders that symbolic links lead to",
    ("runtime/profiler.py", "self._local.name"): "a temporary folder",
    ("config/command_line.py", "program_file"): "a program of this machine",
}
# Functions of `shutil` and `os` that know local files only, by file.
LOCAL_CALLS = {
    ("runtime/files.py", "os.open"): "synchronises local files",
    ("runtime/files.py", "os.truncate"): "cuts a local file; lines in a store are parts",
    ("convert/files.py", "shutil.copyfile"): "copies a local file",
    ("convert/files.py", "shutil.rmtree"): "removes what a local export left",
    ("convert/tensors.py", "os.truncate"): "writes a temporary file",
    ("runtime/processes.py", "os.open"): "opens /dev/null",
    ("run/preflight.py", "os.access"): "asked only of local folders",
    ("runtime/lock.py", "os.open"): "locks a local file; a store has `claim_remote`",
    ("runtime/lock.py", "os.path.samestat"): "locks a local file",
}
_OF_PATHS = (
    *("shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.move"),
    *("shutil.rmtree", "os.open", "os.listdir", "os.scandir", "os.walk", "os.makedirs", "os.mkdir"),
    *("os.remove", "os.unlink", "os.rename", "os.replace", "os.truncate", "os.stat", "os.access"),
    *("glob.glob", "glob.iglob"),
)
HOW = (
    "call `as_path` of seva_jax.runtime.stores, or a function of stores.py or files.py that takes "
    "both kinds; if only a local path can come here, add it with the reason to tests/test_paths.py"
)


def _temporary(tree):
    """Returns the names of temporary folders: `with tempfile.TemporaryDirectory() as NAME`."""
    return {
        ast.unparse(item.optional_vars)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if item.optional_vars and "tempfile.TemporaryDirectory(" in ast.unparse(item.context_expr)
    }


def _is_local(argument, temporary):
    """Returns whether what becomes a `Path` is local by its form."""
    text = ast.unparse(argument)
    constant = isinstance(argument, ast.Constant) or (
        isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant)
    )
    made = "tempfile.mkdtemp(" in text or "tempfile.TemporaryDirectory(" in text
    return constant or text == "__file__" or text in temporary or made


def problems(source, file):
    """Yields a line for everything in a module that takes only local paths, without a reason."""
    tree = ast.parse(source)
    temporary = _temporary(tree)
    for node in ast.walk(tree):
        where = f"seva_jax/{file}:{getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("Path", "pathlib.Path"):
                for argument in node.args:
                    if not _is_local(argument, temporary):
                        text = ast.unparse(argument)
                        if (file, text) not in LOCAL:
                            yield f"{where}Path({text}) would turn gs://bucket into gs:/bucket"
            elif name == "open" or name in _OF_PATHS or name.startswith("os.path."):
                if (file, name) not in LOCAL_CALLS:
                    yield f"{where}{name}() knows local files only"
            elif name not in ("isinstance", "cast"):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                if "Path" in map(ast.unparse, values):
                    yield f"{where}{name}() makes a Path of a user's text"
        if file.startswith("bench/") or "__main__" in file:  # makes options from text
            fields = node.body if isinstance(node, ast.ClassDef) else []
            options = [x for x in fields if isinstance(x, ast.AnnAssign)]
            annotated = isinstance(node, ast.Assign) and "Annotated[" in ast.unparse(node.value)
            for option in [*options, *([node] if annotated else [])]:
                if re.search(r"\bPath\b", ast.unparse(option)):
                    yield f"{where}the option {ast.unparse(option)} would be a Path; take a str"


def test_every_path_of_a_user_may_be_in_a_bucket():
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    assert len(files) > 200
    wrong = [
        problem
        for file, path in sorted(files.items())
        if file not in WHOLE
        for problem in problems(path.read_text(encoding="utf-8"), file)
    ]
    assert not wrong, "\n".join([*wrong, HOW])


def test_every_exception_is_needed():
    for file, what in (*LOCAL, *LOCAL_CALLS):
        assert what in (PACKAGE / file).read_text(encoding="utf-8"), f"{file}: {what} is gone"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("Path(config.workdir)", "Path(config.workdir) would turn"),
        ("pathlib.Path(text)", "Path(text) would turn"),
        ("Path(f'{folder}/x')", "would turn"),
        ("parser.add_argument('--out', type=Path)", "makes a Path of a user's text"),
        ("list(map(Path, names))", "makes a Path of a user's text"),
        ("open(name)", "open() knows local files only"),
        ("os.path.join(a, b)", "os.path.join() knows local files only"),
        ("shutil.copytree(a, b)", "shutil.copytree() knows local files only"),
        ("class Options:\n    out: Path | None = None", "take a str"),
        ("_Out = Annotated[Path, tyro.conf.Positional]", "take a str"),
        ("Path('~').expanduser()", ""),
        ("Path(__file__).parent", ""),
        ("Path(f'/proc/{pid}/stat')", ""),
        ("with tempfile.TemporaryDirectory(prefix='x') as scratch:\n    Path(scratch)", ""),
        ("isinstance(path, Path)", ""),
        ("def f(path: Path) -> Path: return path.open()", ""),
    ],
)
def test_what_is_found(source, problem):
    found = list(problems(source, "plan/__main__.py"))
    assert len(found) == bool(problem)
    assert all(problem in line for line in found), found
