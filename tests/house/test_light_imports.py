"""Importing does nothing: no heavy library, no environment variable, no logging, no global random state.

Each check runs in a fresh interpreter, because this one has imported everything already. Nothing is timed: what is
loaded decides how long it takes, and can be checked exactly.
"""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "sklearn", "scipy", "polars", "pydantic", "matplotlib", "rich", "typer", "numpy")


def loaded_by(code: str) -> set[str]:
    """Which of the heavy libraries are loaded after ``code`` ran in a fresh interpreter."""
    script = f"import json, sys\n{code}\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_the_package_loads_no_library() -> None:
    assert loaded_by("import qlassify") == set()


def test_help_loads_no_library_that_a_verb_needs() -> None:
    code = (
        "sys.argv = ['qlassify', '--help']\n"
        "from qlassify.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded_by(code) <= {"typer", "rich"}


def test_help_of_a_verb_loads_no_library_that_the_verb_needs() -> None:
    code = (
        "sys.argv = ['qlassify', 'train', '--help']\n"
        "from qlassify.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    # pydantic is there because typer reads a verb's options with it.
    assert loaded_by(code) <= {"typer", "rich", "pydantic"}


def test_rooms_below_the_models_load_no_torch() -> None:
    """Configuration, data and planning work where torch cannot even be loaded."""
    code = (
        "import pathlib, importlib, qlassify\n"
        "root = pathlib.Path(qlassify.__file__).parent\n"
        "names = [p.stem for p in root.glob('*.py') if p.stem in ('errors', 'seeding', 'version')]\n"
        "for room in ('config', 'contracts', 'data', 'planning'):\n"
        "    names += [f'{room}.{p.stem}' for p in (root / room).glob('*.py') if p.stem != '__init__']\n"
        "assert len(names) > 20, names\n"
        "for name in names:\n    importlib.import_module('qlassify.' + name)"
    )
    assert loaded_by(code) & {"torch", "transformers", "sklearn", "matplotlib"} == set()


def test_importing_changes_no_global_state() -> None:
    """Every module that a training job loads, against the state before.

    Libraries are loaded beforehand: some of them (rich, for its style ids) draw a random number when imported.
    """
    script = """
import json, logging, os, random, signal, warnings
import numpy, torch, transformers, rich.console, matplotlib.pyplot, sklearn, polars, pydantic
def state():
    return {
        "environment": dict(os.environ),
        "root level": logging.getLogger().level,
        "root handlers": [repr(handler) for handler in logging.getLogger().handlers],
        "transformers verbosity": transformers.utils.logging.get_verbosity(),
        "warning filters": [repr(one) for one in warnings.filters],
        "random": hash(random.getstate()),
        "numpy": numpy.random.get_state()[1].tobytes().hex() + str(numpy.random.get_state()[2]),
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "default dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
    }
before = state()
import qlassify, qlassify.job, qlassify.scoring, qlassify.cli.app, qlassify.cli.show
for name in qlassify.__all__:
    getattr(qlassify, name)
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout)
    # Parts of libraries that are loaded only now may add filters of their own; of ours, the next test speaks.
    assert set(changed) <= {"warning filters"}


def test_no_source_touches_warnings_logging_or_the_environment_at_import() -> None:
    """Calls of the usual suspects at module level, found by parsing."""
    import ast
    from pathlib import Path

    import qlassify

    suspects = ("warnings.", "logging.", "os.environ", "os.putenv", "random.seed", "torch.manual_seed", "torch.set_")
    wrong = []
    for path in sorted(Path(qlassify.__file__).parent.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.With, ast.For)):
                text = ast.unparse(node)
                if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                    wrong += [f"{path.name}:{node.lineno} {text}" for suspect in suspects if suspect in text]
    assert wrong == []
