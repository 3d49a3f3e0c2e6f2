"""The model card: README.md of a model directory, as the Hugging Face hub defines it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pelagos import __version__
from pelagos.jobs.weights.trained_on import TrainedOn
from pelagos.models.registry import list_models, model_info

CARD_FILE = "README.md"
NOT_STATED = "not stated"
_MOST_LEADS = 10
_TASKS = {"classification": "image-classification", "segmentation": "image-segmentation"}


@dataclass(frozen=True)
class Training:
    """How the exported weights came to be; None or empty: not known."""

    run: str
    step: int
    total_steps: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    code_version: str = ""


def model_card(
    description: Mapping[str, Any],
    training: Training,
    *,
    parameters: int,
    licence: str | None = None,
    programs: Mapping[str, str] | None = None,
) -> str:
    """Return the text of a model card.

    Args:
        licence: of the weights, a name of the hub's list (`apache-2.0`); None: not stated.
        programs: files that run without Pelagos, and how many samples each takes.
    """
    front = _front_matter(description, training, licence)
    parts = [
        f"---\n{front}\n---",
        f"# {_cell(training.run)}",
        _summary(description, training, parameters),
        "## Fields",
        _fields(description),
        "## Training data",
        _data(description),
        "## Training",
        _training(description, training),
        "## Errors by lead time",
        _errors(training),
        "## Limits",
        _limits(description),
        "## Licence",
        f"Of these weights: {_cell(licence) if licence else NOT_STATED}. Of the training data: see the "
        "table above. Pelagos, which reads them, is under Apache-2.0.",
        "## Use with Pelagos",
        _with_pelagos(description),
        "## Use without Pelagos",
        _without_pelagos(description, programs or {}),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(description: Mapping[str, Any], training: Training, licence: str | None) -> str:
    objective = description["objective"]["name"]
    task = _TASKS.get(objective)
    results = [
        EvalResult(
            task_type=task or "pde-forecasting",
            dataset_type=str(data["name"]),
            dataset_name=str(data["name"]),
            metric_type=f"{metric}-{_last_way(data)}",
            metric_name=f"{title} at lead time {row['lead_time']:g}",
            metric_value=round(float(value or 0.0), 6),
        )
        for data in _evaluated(training)
        for row in data["summary"][-1:]
        for metric, title, value in (
            ("relative-l1", "relative L1 error", row.get(_last_way(data))),
            ("vrmse", "VRMSE", _vrmse(row, _last_way(data))),
        )
        if _is_number(value)
    ]
    data = ModelCardData(
        license=licence,
        library_name="pelagos",
        pipeline_tag=task,
        tags=["pelagos", "pde" if task is None else "images", str(description["model"]["name"])],
        model_name=training.run,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip()


def _summary(description: Mapping[str, Any], training: Training, parameters: int) -> str:
    known, name = TrainedOn.of(description), description["model"]["name"]
    grids = " and ".join(" × ".join(map(str, grid)) for grid in known.grids)
    on_grid = f", on grids of {grids} points" if grids else ""
    objective = description["objective"]["name"]
    averaged = ", averaged over the training (ema)" if description.get("weights") == "ema" else ""
    task = _TASKS.get(objective)
    fields = ", ".join(map(_cell, description["fields"]))
    purpose = (
        f"Finds classes ({task}) from {fields}{on_grid}."
        if task
        else f"Forecasts {fields}{on_grid}, for lead times of {known.leads_in_words()}."
    )
    return (
        f"{purpose} The network is {_cell(name)} with {parameters:,} parameters{averaged}, the weights "
        f"are those after step {training.step}. Written by Pelagos {__version__}."
    )


def _fields(description: Mapping[str, Any]) -> str:
    known, constants = TrainedOn.of(description), description.get("normalization")
    rows = []
    for number, name in enumerate(description["fields"]):
        mean, std = (f"{constants[k][number]:.6g}" if constants else "" for k in ("mean", "std"))
        rows.append((name, known.units.get(name, NOT_STATED), mean, std))
    order = "Channels are in this order. Mean and deviation are those of the normalisation."
    return f"{order}\n\n" + _table(("field", "unit", "mean", "deviation"), rows)


def _data(description: Mapping[str, Any]) -> str:
    rows = []
    for data in description.get("datasets", ()):
        interval = data.get("frame_interval")
        unit = data.get("time_unit", "1")
        rows.append(
            (
                data["name"],
                data.get("equation") or NOT_STATED,
                data.get("trajectories", NOT_STATED),
                " × ".join(map(str, data.get("grid_shape", ()))) or NOT_STATED,
                NOT_STATED
                if interval is None
                else f"{interval:g}" + ("" if unit == "1" else f" {unit}"),
                ", ".join(f"{k} {v}" for k, v in data.get("boundary_conditions", {}).items()),
                str(data["fingerprint"])[:16],
                data.get("licence") or NOT_STATED,
            )
        )
    heads = (
        *("dataset", "equation", "trajectories", "grid", "frame interval", "boundary"),
        *("fingerprint", "licence"),
    )
    return _table(heads, rows) if rows else "Not recorded."


def _training(description: Mapping[str, Any], training: Training) -> str:
    steps = f"{training.step}" + (f" of {training.total_steps}" if training.total_steps else "")
    options = {k: v for k, v in description["objective"].items() if k != "name"}
    name = str(description["model"]["name"])
    paper = model_info(name).paper if name in list_models() else ""
    facts = {
        "run": training.run,
        "network": f"{name} ({paper})" if paper else name,
        "steps": steps,
        "objective": description["objective"]["name"] + (f" {options}" if options else ""),
        **training.facts,
        **({"exported by code": training.code_version} if training.code_version else {}),
    }
    return _table(("", ""), list(facts.items()))


def _evaluated(training: Training) -> list[dict[str, Any]]:
    """Return the datasets of the evaluation that have rows of numbers; it is a file."""
    found = []
    for data in (training.evaluation or {}).get("datasets", ()):
        rows = data.get("summary") if isinstance(data, dict) else None
        kept = [r for r in rows or () if isinstance(r, dict) and _is_number(r.get("lead_time"))]
        if kept:
            found.append({**data, "name": str(data.get("name")), "summary": kept})
    return found


def _last_way(data: Mapping[str, Any]) -> str:
    """Return the way to forecast whose errors the verdict is about, or the first that there is."""
    row = data["summary"][-1]
    verdict = data.get("verdict")
    best = verdict.get("method") if isinstance(verdict, dict) else None
    ways = [best, "direct", "autoregressive"]
    return next(
        (way for way in ways if isinstance(way, str) and _is_number(row.get(way))), "direct"
    )


def _errors(training: Training) -> str:
    found = _evaluated(training)
    if not found:
        return (
            "No errors were measured for these weights. `pelagos evaluate` measures them on "
            "trajectories that were not trained on."
        )
    parts = [
        "Medians over held-out trajectories, means over fields. VRMSE is 1 for the mean of the truth."
    ]
    for data in found:
        way = _last_way(data)
        rows = [
            (
                f"{row['lead_time']:g}",
                _percent(row.get(way)),
                _number(_vrmse(row, way)),
                _percent(row.get("persistence")),
                _percent(row.get("mean")),
            )
            for row in _thinned(data["summary"])
        ]
        count = len(data.get("trajectories", ()))
        heads = ("lead time", f"{way}: relative L1", "VRMSE", "persistence", "mean field")
        verdict = data.get("verdict")
        sentence = verdict.get("sentence") if isinstance(verdict, dict) else None
        told = f" The model {_cell(sentence)}." if isinstance(sentence, str) else ""
        parts.append(
            f"**{_cell(data['name'])}**, {count} trajectories.{told}\n\n" + _table(heads, rows)
        )
    return "\n\n".join(parts)


def _vrmse(row: Mapping[str, Any], way: str) -> Any:
    found = row.get("vrmse")
    return found.get(way) if isinstance(found, dict) else None


def _thinned(rows: Sequence[Any]) -> list[Any]:
    if len(rows) <= _MOST_LEADS:
        return list(rows)
    last = len(rows) - 1
    return [rows[round(n * last / (_MOST_LEADS - 1))] for n in range(_MOST_LEADS)]


def _limits(description: Mapping[str, Any]) -> str:
    known = TrainedOn.of(description)
    objective = description["objective"]["name"]
    items = [
        "It learnt the data above and nothing else. Forecasts for other equations, parameters, boundary "
        "conditions, ranges of values or resolutions look plausible and may be wrong.",
        "No conservation law is built in. Check what matters to you (mass, energy, sign).",
    ]
    if objective not in _TASKS:
        items.append(
            f"Lead times other than {known.leads_in_words()} were not trained. Errors grow when "
            "forecasts are fed back (`rollout`)."
        )
    if description.get("masks"):
        masked = ", ".join(f"{n} (mask {m})" for n, m in description["masks"].items())
        items.append(f"Fields have values only where their mask is 1: {_cell(masked)}.")
    if any(known.offsets):
        items.append(
            f"In training, numbers were subtracted from fields: {_cell(str(list(known.offsets)))}."
        )
    return "\n".join(f"- {item}" for item in items)


def _with_pelagos(description: Mapping[str, Any]) -> str:
    if description["objective"]["name"] in _TASKS:
        code = [
            "from pelagos.models.registry import load_pretrained",
            "",
            'network = load_pretrained(".")  # this directory',
            "print(network)",
        ]
        return _code(code) + "\n\n`pelagos predict DIR IMAGES.nii CLASSES.nii` applies it to files."
    known, constants = TrainedOn.of(description), description["normalization"]
    frames = _input_frames(description)
    grid = known.grids[0] if known.grids else (32, 32)
    shape = ", ".join(map(str, ((frames,) if frames > 1 else ()) + (len(constants["mean"]), *grid)))
    lead = known.step or 1.0
    code = [
        "import numpy as np",
        "from pelagos.jobs.weights.forecaster import Forecaster",
        "",
        'forecaster = Forecaster.load(".")  # this directory, or "OWNER/NAME" on the hub',
        "mean = np.array(forecaster.normalization.mean, np.float32)",
        f"fields = np.zeros(({shape}), np.float32) + mean[:, {', '.join(['None'] * len(grid))}]",
        f"forecast = forecaster.predict(fields, lead_time={lead:g})",
        f"rollout = forecaster.rollout(fields, steps=3, lead_time={lead:g})",
        "print(forecaster.fields, forecast.shape, rollout.shape)",
    ]
    return _code(code) + (
        "\n\nFields are in physical units. xarray objects, torch tensors and files "
        "(`pelagos predict DIR IN.nc OUT.nc`) work as well."
    )


def _without_pelagos(description: Mapping[str, Any], programs: Mapping[str, str]) -> str:
    program = next((name for name in programs if name.endswith(".pt2")), None)
    known = TrainedOn.of(description)
    frames = _input_frames(description)
    count = len(description["fields"]) - (description["objective"]["name"] == "segmentation")
    if program is None:
        code = [
            "import glob",
            "import json",
            "from safetensors.torch import load_file",
            "",
            'weights = {k: v for f in glob.glob("model*.safetensors") for k, v in load_file(f).items()}',
            'config = json.load(open("config.json"))  # every option of the network',
            'constants = json.load(open("forecaster.json"))["normalization"]',
            'print(config["model_type"], len(weights), constants["fields"])',
        ]
        return (
            "The weights have the names of the published network, where there is one. It sees "
            "`(fields - mean) / std` and its answer is scaled back.\n\n" + _code(code)
        )
    shape = ", ".join(map(str, (1, *((frames,) if frames > 1 else ()), count, *known.grids[0])))
    lead = (
        ""
        if description["objective"]["name"] in _TASKS
        else f", torch.tensor([{known.step or 1.0:g}])"
    )
    code = [
        "import torch",
        "",
        f'program = torch.export.load("{program}").module()',
        f"fields = torch.zeros({shape})  # physical units",
        f"print(program(fields{lead}).shape)",
    ]
    onnx = "forecast.onnx"
    told = f" `{onnx}` is the same program for ONNX." if onnx in programs else ""
    return (
        f"`{program}` is the whole forecast as a program of PyTorch, normalisation included; it takes "
        f"{programs[program]} at a time.{told}\n\n" + _code(code)
    )


def _input_frames(description: Mapping[str, Any]) -> int:
    objective = description["objective"]
    is_window = objective["name"] == "autoregressive"
    return int(objective.get("num_input_frames", 10)) if is_window else 1


def _code(lines: Sequence[str]) -> str:
    return "\n".join(("```python", *lines, "```"))


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    """Return text that others may have written, as the text of one cell: no markup, no line ends."""
    text = " ".join(str(value).split())
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _percent(value: Any) -> str:
    return f"{value:.2%}" if _is_number(value) else "-"


def _number(value: Any) -> str:
    return f"{value:.3f}" if _is_number(value) else "-"


def adapter_card(
    description: Mapping[str, Any],
    training: Training,
    *,
    base: str,
    parameters: int,
    licence: str | None = None,
) -> str:
    """Return the card of low-rank updates in PEFT's layout.

    Args:
        base: the model that they are added to.
        parameters: numbers in the adapter.
    """
    data = ModelCardData(
        license=licence,
        library_name="peft",
        tags=["pelagos", "lora", str(description["model"]["name"])],
    )
    code = [
        "from peft import PeftModel",
        "from pelagos.models.registry import load_pretrained",
        "",
        'network = load_pretrained("BASE")  # pelagos export RUN BASE --weights base',
        'network = PeftModel.from_pretrained(network, ".").merge_and_unload()',
    ]
    parts = [
        f"---\n{data.to_yaml().rstrip()}\n---",
        f"# {_cell(training.run)}: low-rank updates",
        f"Updates of {_cell(description['model']['name'])} ({parameters:,} numbers), trained from "
        f"{_cell(base)}. They are added to the weights of the base.",
        "## Training data",
        _data(description),
        "## Training",
        _training(description, training),
        "## Limits",
        _limits(description),
        "## Use",
        _code(code),
        "Fields and normalisation are in `forecaster.json` of the base that Pelagos exports.",
    ]
    return "\n\n".join(parts) + "\n"
