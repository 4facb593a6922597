"""No source of ours runs what it reads: no pickle, no eval, no shell, no code of a checkpoint.

The sources are parsed and every import and call is named in full, through aliases and ``from`` imports, so that
``from os import system as go`` is found as ``os.system``. What a library does inside is not seen here; the calls into
the libraries that could run something are, and have to say that they must not.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qlassify

ROOT = Path(qlassify.__file__).parent
FORBIDDEN_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "code",
    "codeop",
    "ctypes",
    "telnetlib",
    "xmlrpc",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "os.startfile",
    "os.umask",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "pandas.read_pickle",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "yaml.unsafe_load_all",
    "yaml.full_load_all",
    "yaml.dump",
    "shutil.unpack_archive",
    "zipfile.ZipFile",
    "tarfile.open",
}
FORBIDDEN_PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn", "asyncio.create_subprocess_shell")
ALLOWED = {
    # Reading the mask is only possible by setting it; it is put back in the next line.
    ("export/exporting.py", "os.umask"),
    # The system's OpenMP library, which torch has loaded already, called by its own names.
    ("kernels/team.py", "ctypes"),
    # The C library's request to give freed memory back.
    ("models/low_bit.py", "ctypes"),
}
REQUIRED = {
    # call that ends so -> keyword and the value that it has to have
    "numpy.load": ("allow_pickle", False),
    "AutoConfig.from_pretrained": ("trust_remote_code", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
    "AutoModel.from_pretrained": ("trust_remote_code", False),
    "AutoModelForSequenceClassification.from_pretrained": ("trust_remote_code", False),
    "auto_model.from_pretrained": ("trust_remote_code", False),
}
REFUSED_ARGUMENTS = {
    "shell": True,
    "allow_pickle": True,
    "trust_remote_code": True,
    "weights_only": False,
    "use_safetensors": False,
}


def findings(source: str, file: str = "example.py") -> list[str]:
    """What a source has that it must not have, each with its line."""
    tree = ast.parse(source)
    names = _full_names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            for module in modules:
                room = module.partition(".")[0]
                if room in FORBIDDEN_MODULES and (file, room) not in ALLOWED:
                    found.append(f"{file}:{node.lineno}: imports {room}")
        elif isinstance(node, ast.Call):
            found += [f"{file}:{node.lineno}: {words}" for words in _of_call(node, names, file)]
        elif isinstance(node, ast.Attribute | ast.Name) and not isinstance(getattr(node, "ctx", None), ast.Store):
            # A function that is handed on is called by somebody else.
            full = _name_of(node, names)
            if full in {"os.system", "pickle.loads", "torch.load"}:
                found.append(f"{file}:{node.lineno}: names {full}")
    return found


def _full_names(tree: ast.Module) -> dict[str, str]:
    """Local name -> full name, of everything that is imported anywhere in the file."""
    names = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                names[one.asname or one.name.partition(".")[0]] = one.name if one.asname else one.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                names[one.asname or one.name] = f"{node.module}.{one.name}"
    return names


def _name_of(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of a function, as far as it can be read."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_name_of(node.value, names)}.{node.attr}"
    return "?"


def _of_call(node: ast.Call, names: dict[str, str], file: str) -> list[str]:
    full = _name_of(node.func, names).removeprefix("builtins.")
    given = {one.arg: one.value for one in node.keywords if one.arg is not None}
    found = []
    if (full in FORBIDDEN_CALLS or full.startswith(FORBIDDEN_PREFIXES)) and (file, full) not in ALLOWED:
        found.append(f"calls {full}")
    if full == "yaml.load" and not _is_safe_loader(given.get("Loader")):
        found.append("calls yaml.load without a safe loader")
    if full.endswith(".extractall"):
        found.append("unpacks an archive")
    for name, refused in REFUSED_ARGUMENTS.items():
        value = given.get(name)
        # Only a plain False or True can be read here; anything that is computed counts as the worse one.
        if value is not None and not (isinstance(value, ast.Constant) and value.value is (not refused)):
            found.append(f"calls {full} with {name}")
    for ending, (keyword, wanted) in REQUIRED.items():
        if full == ending or full.endswith(f".{ending}"):
            value = given.get(keyword)
            if not (isinstance(value, ast.Constant) and value.value is wanted):
                found.append(f"calls {full} without {keyword}={wanted}")
    return found


def _is_safe_loader(value: ast.expr | None) -> bool:
    """yaml's own safe loaders, or ours, which ``test_our_loader_is_safe`` looks at."""
    if isinstance(value, ast.Attribute):
        return value.attr in ("SafeLoader", "CSafeLoader")
    return isinstance(value, ast.Name) and value.id == "_Loader"


def test_no_source_runs_what_it_reads() -> None:
    found = [
        line
        for path in sorted(ROOT.rglob("*.py"))
        for line in findings(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert found == []


def test_our_loader_is_safe() -> None:
    import yaml

    from qlassify.config.files import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    tags = {tag for tag in _Loader.yaml_constructors if tag is not None}
    assert not any("python" in tag for tag in tags)
    assert _Loader.yaml_multi_constructors == {}


BAD = (
    "eval('1')",
    "import builtins\nbuiltins.exec('1')",
    "compile('1', 'a', 'eval')",
    "__import__('os')",
    "import pickle",
    "from pickle import loads",
    "import marshal as m",
    "def f():\n    import shelve",
    "from joblib import load",
    "import os\nos.system('ls')",
    "from os import system as go\ngo('ls')",
    "import os\nmap(os.system, ['ls'])",
    "import os as o\no.execvp('ls', ['ls'])",
    "import os\nos.popen('ls')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import subprocess\nsubprocess.run('ls', shell=flag)",
    "import subprocess\nsubprocess.getoutput('ls')",
    "import torch\ntorch.load('a.bin')",
    "import torch\ntorch.load('a.bin', weights_only=False)",
    "from torch import load\nload('a.bin')",
    "import numpy as np\nnp.load('a.npy')",
    "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
    "import yaml\nyaml.load(text)",
    "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    "import yaml\nyaml.unsafe_load(text)",
    "from transformers import AutoModel\nAutoModel.from_pretrained('a')",
    "from transformers import AutoModel\nAutoModel.from_pretrained('a', trust_remote_code=True)",
    "import tarfile\nwith tarfile.open('a') as file:\n    file.extractall()",
    "import tempfile\ntempfile.mktemp()",
)
GOOD = (
    "model.eval()",
    "import re\nre.compile('a')",
    "import ast\nast.literal_eval('[1]')",
    "import subprocess\nsubprocess.run(['ls'], check=False)",
    "import numpy as np\nnp.load('a.npy', allow_pickle=False)",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)\nyaml.safe_load(text)",
    "from transformers import AutoModel\nAutoModel.from_pretrained('a', trust_remote_code=False)",
)


@pytest.mark.parametrize("source", BAD)
def test_what_it_finds(source: str) -> None:
    assert findings(source)


@pytest.mark.parametrize("source", GOOD)
def test_what_it_lets_pass(source: str) -> None:
    assert findings(source) == []
