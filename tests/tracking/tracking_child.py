"""A process that records an invented run with one real tool, or reads what was recorded.

    python tracking_child.py TOOL first FOLDER     steps 1 to 10, then dies, or stops where the tool writes at its end
    python tracking_child.py TOOL second FOLDER    resumes after step 6, goes on to 12 and finishes
    python tracking_child.py TOOL read FOLDER      prints {"points": {name: [[step, value], ...]}, ...} as JSON

A process of its own, because these packages start servers, set variables and warn.
"""

from __future__ import annotations

import glob
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlassify.tracking.tracker import TrackedRun
from qlassify.tracking.trackers import Trackers
from qlassify.training.events import EvaluationEvent, StepEvent

SETTINGS = {"training": {"epochs": 2, "class_weights": [1.0, 3.0]}, "method": {"kind": "lora"}, "quant": None}
CHECKPOINT = 6


def loss_at(step: int) -> float:
    """The loss of each step: exact in fp32, which TensorBoard keeps."""
    return 1 / 2**step


def record(tool: str, folder: Path, steps: range, after: int | None) -> None:
    failures: list[str] = []
    with Trackers([tool], TrackedRun(folder, SETTINGS, after), failures.append) as trackers:  # type: ignore[list-item]
        for step in steps:
            trackers.event(StepEvent(step, 12, step / 6, loss_at(step), 0.5, 1e-3, 1.0, 8, 90, 0.1))
            if step % 6 == 0:
                scores = {"macro_f1": step / 16, "macro_f1 of 'c++'": 0.25, "undefined": None}
                trackers.event(EvaluationEvent(step, step / 6, scores, "macro_f1", True, 0.2))
        assert failures == [], failures
        if after is None:
            if tool == "wandb":  # it writes in a process of its own, which a killed parent leaves to itself
                trackers.__exit__(KeyboardInterrupt, None, None)
            os._exit(9)
        trackers.end(12, {"accuracy": 0.75})
    assert failures == [], failures


def read_tensorboard(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    points = {name: [[one.step, one.value] for one in found.Scalars(name)] for name in found.Tags()["scalars"]}
    (text,) = found.Tensors("settings/text_summary")
    return {"points": points, "settings": text.tensor_proto.string_val[0].decode()}


def read_mlflow(folder: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=address)
    (experiment,) = client.search_experiments(filter_string="name = 'qlassify'")
    (run,) = client.search_runs([experiment.experiment_id])
    points = {
        name: [[one.step, one.value] for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return {
        "points": points,
        "settings": dict(run.data.params),
        "status": run.info.status,
        "name": run.info.run_name,
        "id": run.info.run_id,
    }


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, behind a header of 7 bytes."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if kind == 0:
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(folder: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2

    points: dict[str, list[list[float]]] = {}
    runs, summary, codes, kinds = [], {}, [], set()
    for name in sorted(glob.glob(str(folder / "wandb" / "*run-*" / "*.wandb"))):
        for content in wandb_records(Path(name)):
            one = wandb_internal_pb2.Record()
            one.ParseFromString(content)
            kinds.add(one.WhichOneof("record_type"))
            if one.HasField("run"):
                settings = {item.key: json.loads(item.value_json) for item in one.run.config.update}
                runs.append({"id": one.run.run_id, "name": one.run.display_name, "settings": settings})
            for item in one.history.item:
                key = item.key or "/".join(item.nested_key)
                points.setdefault(key, []).append([one.history.step.num, json.loads(item.value_json)])
            for item in one.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            if one.HasField("exit"):
                codes.append(one.exit.exit_code)
    return {"points": points, "runs": runs, "summary": summary, "codes": codes, "kinds": sorted(map(str, kinds))}


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


if __name__ == "__main__":
    tool, part, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if part == "read":
        print(json.dumps(READERS[tool](folder)))
    else:
        first = part == "first"
        record(tool, folder, range(1, 11) if first else range(CHECKPOINT + 1, 13), None if first else CHECKPOINT)
