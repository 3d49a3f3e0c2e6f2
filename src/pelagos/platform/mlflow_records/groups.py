"""The names of a run's values in MLflow, in groups: its pages show each group under a heading.

`train/` and `validation/` hold the learning curves, `evaluation/` the errors of `pelagos evaluate`.
`system/` is what the steps cost: MLflow shows that group on a page of its own, next to the
processor and memory use that it samples there. Errors and shares are fractions everywhere.
"""

TRAIN, VALIDATION, EVALUATION, SYSTEM = "train/", "validation/", "evaluation/", "system/"
_NAMED = {"lr": f"{TRAIN}learning_rate"}
_VALIDATION_KIND = "validation"
_LOSS = "loss"
# Costs of a step (`meters.StepMeter`), and of reading (`data_…`).
_COSTS = (
    *("step_seconds", "samples_per_second", "data_", "memory_bytes", "flops_", "mfu"),
    "goodput",
)


def step_metric(name: str) -> str:
    """Return the name in MLflow of a value of a step, or of all steps.

    >>> step_metric("loss"), step_metric("loss/ns"), step_metric("lr"), step_metric("memory_bytes")
    ('train/loss', 'train/loss/ns', 'train/learning_rate', 'system/memory_bytes')
    """
    if name in _NAMED:
        return _NAMED[name]
    return f"{SYSTEM if name.startswith(_COSTS) else TRAIN}{name}"


def event_metric(kind: str, name: str) -> str:
    """Return the name in MLflow of a value of an event.

    >>> event_metric("validation", "validation_loss/ns"), event_metric("validation", "seconds")
    ('validation/loss/ns', 'system/validation_seconds')
    >>> event_metric("checkpoint", "num_bytes")
    'system/checkpoint_num_bytes'
    """
    short = name.removeprefix(f"{kind}_")
    if kind == _VALIDATION_KIND and _LOSS in short.partition("/")[0]:
        return f"{VALIDATION}{short}"
    return f"{SYSTEM}{kind}_{short}"


def evaluation_metric(name: str) -> str:
    """Return the name in MLflow of a number of an evaluation: a single group.

    MLflow draws a section for each path before the last `/`, in alphabetical order: dozens of them,
    one for each dataset and method, would come before the learning curves.

    >>> evaluation_metric("evaluation/NS-Gauss/direct/vrmse")
    'evaluation/NS-Gauss.direct.vrmse'
    """
    return EVALUATION + name.removeprefix(EVALUATION).replace("/", ".")


def setting_metric(key: str) -> str:
    """Return the name in MLflow of a setting that changed within a run.

    >>> setting_metric("optimizer.lr")
    'train/setting/optimizer.lr'
    """
    return f"{TRAIN}setting/{key}"
