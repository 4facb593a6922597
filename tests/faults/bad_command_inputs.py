"""Command lines that cannot mean anything."""

from __future__ import annotations

from bad_inputs import GOOD, BadInput, file, run

_PLAN = "plan {data} --base {base} --no-measure"


def _good(id: str, options: str, *says: str, code: int = 2, process: bool = False) -> BadInput:
    return BadInput(id, f"{GOOD} {options}", says, code=code, process=process)


COMMANDS = (
    BadInput("an unknown verb", "trian {data}", ("trian",), process=True),
    BadInput("train without data", "train --base {base} --out {tmp}/out", ("data",)),
    _good("an unknown option", "--epoch 3", "no such option: --epoch", "Did you mean --epochs?", process=True),
    _good("an option without its value", "--epochs", "--epochs", "integer"),
    _good("a word for a number", "--epochs three", "--epochs", "three", "integer"),
    _good("one argument too many", "more", "more"),
    _good("negative epochs", "--epochs -1", "training.epochs is -1", "greater than or equal to 1"),
    _good("no epochs", "--epochs 0", "training.epochs is 0"),
    _good("no rows in a batch", "--batch-size 0", "training.batch_size is 0"),
    _good("a learning rate of nan", "--learning-rate nan", "training.learning_rate is nan", "finite"),
    _good("a rank larger than the width", "--rank 9999", "rank", "9999"),
    _good("a rank of 0", "--rank 0", "method.rank is 0"),
    _good("targets that match nothing", "--set method.target_modules=[nothing.like.it]", "nothing.like.it"),
    _good("CUDA without a device", "--device cuda", "cuda"),
    _good("an unknown device", "--device tpu", "model.device is 'tpu'", "'auto', 'cpu' or 'cuda'"),
    _good("an unknown precision", "--precision fp8", "model.precision is 'fp8'", "'bf16'"),
    _good("an unknown method", "--method lorra", "method.kind is 'lorra'", "Did you mean lora?"),
    _good("an unknown pooling", "--pooling max", "model.pooling is 'max'", "'mean'"),
    _good("no seeds", "--seeds 0", "seeds"),
    _good("one seed of several", "--seeds 1", "seeds"),
    _good("a negative seed", "--seed -3", "seed is -3"),
    _good("a limit below four tokens", "--max-length 2", "model.max_length is 2"),
    _good(
        "an option of another method",
        "--method ia3 --rank 4",
        "method.rank is no option of method.kind=ia3",
        "Leave rank out",
    ),
    _good("windows that overlap too much", "--long windows --max-length 8 --set model.window_overlap=8", "overlap"),
    _good("contradicting losses", "--focal-gamma 2 --set training.label_smoothing=0.1", "do not go together"),
    _good("an unknown tracker", "--track tensorbored", "tracking", "tensorboard"),
    _good(
        "a contract that warns, with --strict",
        "--strict --learning-rate 0.0000001",
        "C-LR-002",
        "accepted_contracts",
        code=3,
    ),
    BadInput("a run folder that is a file", GOOD + "/sub", ("{tmp}/out",), file("out", "mine"), process=True),
    BadInput("a run folder that is the file", GOOD, ("{tmp}/out",), file("out", "mine")),
    BadInput(
        "a run folder that is in use",
        "train {data} --base {base} --out {tmp}",
        ("the run folder is not empty", "Choose another with --out"),
        file("note.txt", "mine"),
    ),
    BadInput("--resume of no run", "train --resume {tmp}", ("not a run folder", "run.yaml")),
    BadInput("--resume of nothing", "train --resume {tmp}/none", ("not a run folder",)),
    BadInput(
        "--resume with settings",
        "train --resume {run} --epochs 9",
        ("--resume takes the settings that the run began with", "Leave the other options out"),
    ),
    BadInput("--resume of a finished run", "train --resume {run}", ("the run is finished", "report.html"), code=1),
    BadInput(
        "--resume of damaged settings",
        "train --resume {tmp}/run",
        ("run.yaml", "mapping of sections"),
        run(
            lambda folder: (folder / "evaluation" / "metrics.json").unlink(),
            lambda folder: (folder / "run.yaml").write_text("- 1\n") and None,
        ),
    ),
    BadInput("--memory 8 apples", _PLAN + " --memory 8apples", ("8apples", "GiB"), process=True),
    BadInput("--memory nan", _PLAN + " --memory nanGB", ("nanGB",)),
    BadInput("--memory of nothing", _PLAN + " --memory 0", ("0",)),
    BadInput("--memory below zero", _PLAN + " --memory -8GiB", ("-8GiB",)),
    BadInput("too little memory", _PLAN + " --memory 1MB", ("does not fit into memory", "at most"), code=4, plain=True),
    BadInput("plan: an unknown method", _PLAN + " --method lorra", ("lorra",)),
    BadInput(
        "predict: no run", "predict {tmp} --text dog", ("no saved classifier here", "qlassify train DATA"), process=True
    ),
    BadInput("predict: neither file nor text", "predict {run}", ("give either a file (or -) or --text",)),
    BadInput("predict: both", "predict {run} {data} --text dog", ("give either a file (or -) or --text",)),
    BadInput(
        "predict: an unknown form",
        "predict {run} --text dog --output xml",
        ("unknown output form", "xml", "jsonl"),
        plain=True,
    ),
    BadInput(
        "predict: two pairs for one text",
        "predict {run} --text a --text-pair b --text-pair c",
        ("--text-pair is given once for each --text",),
    ),
    BadInput("predict: a threshold of 2", "predict {run} --text dog --abstain-below 2", ("--abstain-below", "2")),
    BadInput("predict: another base", "predict {run} --text dog --base {tmp}", ("config.json",)),
    BadInput(
        "predict: a base that is not there",
        "predict {run} --text dog --base {tmp}/none",
        ("not a model directory", "nothing there"),
    ),
    BadInput("evaluate: no run", "evaluate {tmp} {data}", ("no saved classifier here",)),
    BadInput(
        "evaluate: --out in a file", "evaluate {run} {data} --out {tmp}/out/sub", ("{tmp}/out",), file("out", "mine")
    ),
    BadInput("calibrate: no run", "calibrate {tmp}", ("no saved classifier here",)),
    BadInput("calibrate: coverage of 2", "calibrate {run} {data} --coverage 2", ("coverage", "less than 1")),
    BadInput("calibrate: threshold for one label of three", "calibrate {run} {data} --threshold 0.4", ("threshold",)),
    BadInput(
        "calibrate: a positive class that is none",
        "calibrate {run} {data} --positive planet",
        ("a positive class is for one of two labels",),
    ),
    BadInput("compare: a run with a folder that is none", "compare {run} {tmp}", ("{tmp}",)),
    BadInput(
        "compare: an unknown suffix",
        "compare {run} {run} {data} --out {tmp}/rows.xls",
        ("unknown output format", ".xls", ".csv"),
    ),
    BadInput("compare: options without data", "compare {run} {run} --text a", ("without DATA nothing is read",)),
    BadInput("export: no run", "export {tmp}/none {tmp}/out", ("no saved classifier here",), process=True),
    BadInput("export: an unknown format", "export {run} {tmp}/out --format tensorflow", ("tensorflow", "onnx")),
    BadInput("export: an unknown precision", "export {run} {tmp}/out --precision fp8", ("fp8", "bf16")),
    BadInput("export: a folder in use", "export {run} {tmp}", ("{tmp}",), file("note.txt", "mine")),
    BadInput("export: below a file", "export {run} {tmp}/out/sub", ("{tmp}/out",), file("out", "mine")),
    BadInput("quantize: an unknown kind", "quantize {base} {tmp}/out --kind nf3", ("nf3", "nf4"), process=True),
    BadInput("quantize: a group of 0", "quantize {base} {tmp}/out --group-size 0", ("group_size",)),
    BadInput("quantize: no model", "quantize {tmp} {tmp}/out", ("no config.json",)),
    BadInput("quantize: a folder in use", "quantize {base} {tmp}", ("{tmp}",), file("note.txt", "mine")),
    BadInput("convert: no model", "convert {tmp} {tmp}/out.apr", ("no config.json",)),
    BadInput("convert: an unknown type", "convert {base} {tmp}/out.apr --type f8", ("f8", "bf16")),
    BadInput(
        "convert: a type for a directory", "convert {base} {tmp}/out --type f16", ("a directory keeps the types",)
    ),
    BadInput("convert: over a file", "convert {base} {tmp}/out.apr", ("{tmp}/out.apr",), file("out.apr", "mine")),
    BadInput("convert: a directory to a directory", "convert {base} {tmp}/out", ("{base}",)),
    BadInput("inspect: nothing", "inspect {tmp}/none", ("{tmp}/none",)),
    BadInput("inspect: an empty folder", "inspect {tmp}", ("{tmp}",)),
    BadInput("inspect: a text", "inspect {tmp}/a.txt", ("a.txt",), file("a.txt", "hello")),
    BadInput(
        "contracts: an unknown one",
        "contracts C-LR-999",
        ("there is no such contract", "C-LR-999", "Did you mean C-LR-004?"),
        process=True,
    ),
    BadInput("ledger: an unknown option", "ledger --purge", ("--purge", "--prune")),
    BadInput("demo: negative epochs", "demo --epochs -3 --out {tmp}/out", ("training.epochs is -3",)),
)
