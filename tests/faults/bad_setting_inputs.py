"""Settings files and ``--set`` that no run can follow."""

from __future__ import annotations

from bad_inputs import GOOD, BadInput, file

_CONFIG = GOOD + " --config {tmp}/run.yaml"


def _config(id: str, content: str | bytes, *says: str, process: bool = False) -> BadInput:
    return BadInput(id, _CONFIG, says, file("run.yaml", content), process=process)


def _override(id: str, text: str, *says: str) -> BadInput:
    return BadInput(id, f"{GOOD} --set {text}", says)


SETTINGS = (
    BadInput("no settings file", _CONFIG, ("cannot read the configuration file", "run.yaml")),
    BadInput("settings: a directory", GOOD + " --config {tmp}", ("cannot read the configuration file", "{tmp}")),
    _config("settings: not YAML", "training: [1, 2\nx: {", "not valid YAML", "line"),
    _config("settings: tabs", "training:\n\tepochs: 1\n", "not valid YAML", "line 2"),
    _config(
        "settings: a Python object",
        "training: !!python/object/apply:os.system ['touch pwned']\n",
        "not valid YAML",
        "python/object",
        process=True,
    ),
    _config("settings: a Python name", "seed: !!python/name:os.system\n", "not valid YAML"),
    _config("settings: an unknown tag", "seed: !env HOME\n", "not valid YAML"),
    _config("settings: a list", "- training\n- model\n", "mapping of sections", "list"),
    _config("settings: a word", "training\n", "mapping of sections", "str"),
    _config("settings: binary", bytes(range(256)), "run.yaml"),
    _config(
        "settings: latin-1",
        "model:\n  base: caf\xe9\n".encode("latin-1"),
        "cannot read the configuration file",
        "utf-8",
    ),
    _config("settings: NUL byte", "seed: 1\0\n", "not valid YAML"),
    _config("settings: a key twice", "seed: 1\nseed: 2\n", "run.yaml", "seed", "twice"),
    _config("settings: a key twice in a section", "training:\n  epochs: 1\n  epochs: 9\n", "epochs", "twice"),
    _config(
        "settings: an alias bomb",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)),
        "too many, or hold themselves",
    ),
    _config("settings: an alias of itself", "training: &a\n  epochs: *a\n", "run.yaml", "through an alias"),
    _config("settings: nested 10,000 deep", "a: " + "[" * 10_000 + "]" * 10_000, "run.yaml"),
    _config(
        "settings: an unknown section",
        "trainning:\n  epochs: 2\n",
        "unknown option trainning",
        "Did you mean training?",
    ),
    _config(
        "settings: an unknown option",
        "training:\n  epoch: 2\n",
        "unknown option training.epoch",
        "Did you mean training.epochs?",
    ),
    _config("settings: a section that is a number", "training: 3\n", "training is 3", "a section with options"),
    _config("settings: keys that are numbers", "1: 2\n", "unknown option 1"),
    _config("settings: a key that is a list", "? [a, b]\n: 1\n", "run.yaml"),
    _config("settings: a wrong type", "training:\n  epochs: many\n", "training.epochs is 'many'", "integer"),
    _config("settings: a truth value", "training:\n  learning_rate: [1]\n", "training.learning_rate is [1]"),
    _config(
        "settings: out of range",
        "training:\n  label_smoothing: 1.5\n",
        "training.label_smoothing is 1.5",
        "less than 1",
    ),
    _config("settings: infinity", "training:\n  learning_rate: .inf\n", "training.learning_rate is inf", "finite"),
    _config("settings: NaN", "training:\n  weight_decay: .nan\n", "training.weight_decay is nan", "finite"),
    _config("settings: a huge number", f"seed: 1{'0' * 5000}\n", "run.yaml", "thousands of digits"),
    _config("settings: a huge number of epochs", "training:\n  epochs: 1e300\n", "training.epochs"),
    _config("settings: another kind of file", "format: 2\nlabels: [a, b]\n", "unknown option"),
    _config(
        "settings: class weights for other classes", "training:\n  class_weights: [1.0, 2.0]\n", "class_weights", "3"
    ),
    _config("settings: weights that are negative", "training:\n  class_weights: [1.0, -2.0, 1.0]\n", "class_weights"),
    _config("settings: two targets", "training:\n  focal_gamma: 2\n  label_smoothing: 0.1\n", "do not go together"),
    _config("settings: an unknown method", "method:\n  kind: lorra\n", "method.kind is 'lorra'", "lora"),
    _config("settings: an unknown metric", "training:\n  selection_metric: macrof1\n", "selection_metric", "macro_f1"),
    _override("--set without a value", "training.epochs", "an override is NAME=VALUE", "training.epochs=5"),
    _override("--set of nothing", "=5", "an override is NAME=VALUE"),
    _override("--set of a section", "training=5", "training is 5"),
    _override(
        "--set of an unknown option",
        "training.epcohs=5",
        "unknown option training.epcohs",
        "Did you mean training.epochs?",
    ),
    _override("--set below an option", "seed.a=5", "seed"),
    _override("--set with a tag", "seed=!!python/name:os.system", "seed"),
    _override("--set of an unknown contract", "accepted_contracts=[C-NO-999]", "C-NO-999"),
)
