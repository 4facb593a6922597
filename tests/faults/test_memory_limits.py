"""Hard limits on memory: the command ends with exit code 4 and a plan's explanation, or it does its work.

The limits are real ones (``RLIMIT_AS``, ``RLIMIT_DATA``) on processes of their own. What they leave is found by the
plan before a weight is read; where even the libraries do not fit there is nothing to plan with, and that is told.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_tally import Tally
from limited_command import SECONDS, World, make_world, run_command

from qlassify.artifact import require_undamaged
from qlassify.planning import memory
from tiny_jobs import write_table

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base model and rows."""
    return make_world(tmp_path_factory.mktemp("world"))


def child(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script in a process of its own; it prints one JSON object."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


LIMITED = """
import json, resource, sys
from qlassify.planning import memory

kind, name, limit = getattr(resource, sys.argv[1]), sys.argv[2], int(sys.argv[3])
before = memory.available_memory_bytes()
resource.setrlimit(kind, (limit, limit))
reserved = memory._own_bytes(name)
print(json.dumps({"before": before, "reserved": reserved, "free": memory.available_memory_bytes(),
                  "words": memory.limit_in_force(0), "more": memory.limit_in_force(10**15)}))
"""


@pytest.mark.parametrize(("kind", "name"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_what_is_free_is_what_the_limit_leaves(kind: str, name: str) -> None:
    later = memory._RESERVED_LATER[name]
    fixed, each = memory._THREADS
    kept = later.libraries + later.thread * (fixed + each * memory._cores())
    limit = kept + 4096 * MEBIBYTE
    found = child(LIMITED, kind, name, limit)
    if found["before"] < limit:
        pytest.skip("this machine has less memory free than the limit leaves")
    # Reading /proc and making the objects of the answer may map a few pages between the two readings.
    assert abs(found["free"] - (limit - found["reserved"] - kept)) <= 4 * MEBIBYTE
    assert found["words"] is None
    assert kind in str(found["more"])
    assert child(LIMITED, kind, name, 2048 * MEBIBYTE if kind == "RLIMIT_AS" else 128 * MEBIBYTE)["free"] >= 0


def test_without_limits_nothing_is_held_back() -> None:
    if any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        pytest.skip("this process has such a limit")
    assert list(memory._own_limits()) == []
    assert memory.limit_in_force(2**62) is None


SHORT = {resource.RLIMIT_AS: (1500,), resource.RLIMIT_DATA: ()}
FULL = {resource.RLIMIT_AS: (500, 1050, 1250, 2600, 8000), resource.RLIMIT_DATA: (270, 400, 450, 600, 4000)}
"""MiB: from what not even torch fits into to what everything fits into."""


@pytest.mark.slow
def test_under_a_limit_the_command_plans_or_refuses_and_never_breaks(
    world: World, tmp_path: Path, tally: Tally, full_faults: bool
) -> None:
    ended: dict[tuple[int, int], int] = {}
    for kind, sizes in SHORT.items():
        for size in (*sizes, *(FULL[kind] if full_faults else ())):
            run = tmp_path / f"{kind}-{size}"
            done = run_command("train", "--config", world.file, "--out", run, "-q", limits={kind: size * MEBIBYTE})
            assert "Traceback" not in done.err, (size, done.err)
            assert done.code in (0, 4), (size, done.code, done.err)
            if done.code == 4:
                (sentence,) = done.sentences
                assert "memory" in sentence
                if "does not fit into memory" in sentence:
                    assert "RLIMIT_" in sentence, "it says which limit that is"
                    assert not run.exists(), "nothing is begun that has no room"
            else:
                require_undamaged(run / "model")
            ended[kind, size] = done.code
            tally("faults injected", 1)
    assert ended[resource.RLIMIT_AS, 1500] == 4
    if full_faults and memory._cores() <= 16:  # with more, threads alone may reserve what these leave
        assert ended[resource.RLIMIT_AS, 8000] == 0
        assert ended[resource.RLIMIT_DATA, 4000] == 0


HALVING = """
import hashlib, json, resource, sys
from pathlib import Path

import torch
import yaml

from qlassify import job
from qlassify.config.run import RunConfig
from qlassify.pipeline import ClassifyPipeline
from qlassify.planning.memory import _own_bytes
from qlassify.training.events import TokenBudgetEvent

settings, spare = yaml.safe_load(Path(sys.argv[1]).read_text()), int(sys.argv[2])
torch.set_num_threads(1)


def train(budget, spare=None):
    run = RunConfig.parse({**settings, "training": {**settings["training"], "token_budget": budget}})
    pipeline = ClassifyPipeline.from_pretrained(run.model.base, run)
    dataset = job.read_dataset(run)
    pipeline.prepare_for(dataset)
    loop = pipeline.training_loop(dataset, pipeline.encode_dataset(dataset))
    if spare is not None:
        limit = _own_bytes("VmSize") + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    told = []
    for event in loop.run():
        if isinstance(event, TokenBudgetEvent):
            told.append(event)
        else:  # the first step is taken: what a later one finds in pieces is another matter
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    digest = hashlib.sha256()
    for parameter in loop.stepper.optimizer.parameters.values():
        digest.update(parameter.detach().numpy().tobytes())
    return told, digest.hexdigest()


train(256)  # everything is imported, compiled and started after this
told, found = train(1_000_000, spare)
_, wanted = train(told[-1].token_budget if told else 1_000_000)
print(json.dumps({"told": [[one.step, one.token_budget, one.former, one.reason] for one in told],
                  "found": found, "wanted": wanted}))
"""


@pytest.mark.slow
def test_an_allocator_that_really_refuses_halves_the_budget(world: World, tmp_path: Path, tally: Tally) -> None:
    """The address space is closed during the first step, whose 24,000 tokens take some hundred megabytes at once.

    What comes of it is bitwise what comes of the budget that it ended with, in the same process without a limit.
    """
    words, labels = ("the dog was near", "a pear and a plum", "under the hammer"), ("beast", "fruit", "tool")
    ends = ("one", "some", "very", "quite", "not", "over", "with")
    rows = [
        (f"{words[i % 3]} {' '.join(ends[(i // 7**k) % 7] for k in range(4))} {'was is ' * 24}", labels[i % 3])
        for i in range(450)
    ]
    data = write_table(tmp_path / "long.csv", ("text", "label"), rows)
    settings = json.loads(json.dumps(world.settings))
    settings["data"] = {"train": str(data), "eval_fraction": 0.1}
    settings["training"] |= {"epochs": 2, "batch_size": 400}
    settings["method"] |= {"dropout": 0.1}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    found = child(HALVING, file, 32 * MEBIBYTE)
    told = found["told"]
    assert isinstance(told, list)
    assert told, "the limit was meant to be felt"
    assert all("can't allocate memory" in reason or "MemoryError" in reason for *_, reason in told), told
    assert found["found"] == found["wanted"]
    tally("faults injected", len(told))
