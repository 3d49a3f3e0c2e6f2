"""A whole forecast as a program that runs without Pelagos: `torch.export`'s, or ONNX's.

Physical fields and lead times go in, physical fields come out. A program is kept only if it gives what
the model gives, up to rounding, on samples that it was not made from.
"""

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pelagos.jobs.weights.trained_network import TrainedNetwork

Kind = Literal["torch-export", "onnx"]
KINDS: tuple[Kind, ...] = ("torch-export", "onnx")
FILES: dict[Kind, str] = {"torch-export": "forecast.pt2", "onnx": "forecast.onnx"}
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_SAMPLES = 4096
# Share of the answer's size by which two programs of float32 may differ: sums are in another order, and
# errors of about 6e-8 each grow over some hundred layers.
ROUNDING = 1e-4


class Forecast(nn.Module):
    """Fields `[batch, (frame,) channel, *grid]` and lead times `[batch]` to fields, in physical units.

    Of a network of images: images to logits.
    """

    def __init__(self, model: TrainedNetwork) -> None:
        super().__init__()
        self.network, self.objective = model.model, model.objective
        self.is_image = model.objective.call == "image"
        self.masks = model.field_masks
        self.has_frames = model.input_frames > 1
        offset = model.trained_on.offset()
        shift = torch.tensor([offset.get(name, 0.0) for name in model.fields])
        mean, std = torch.tensor(model.normalization.mean), torch.tensor(model.normalization.std)
        shape = (-1, *(1,) * len(model.trained_on.grids[0]))
        kept = [n for n in range(len(model.fields)) if not self.is_image or _goes_in(model, n)]
        self.register_buffer("mean", (mean + shift)[kept].reshape(shape))
        self.register_buffer("std", std[kept].reshape(shape))

    def forward(self, fields: Tensor, lead_time: Tensor | None = None) -> Tensor:
        """Return fields, `lead_time` later; of images the logits."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        normalized = (fields - mean) / std
        if lead_time is None:
            answer = self.network(normalized)
            finest: Tensor = answer[0] if isinstance(answer, tuple) else answer
            return finest
        frames = normalized if self.has_frames else normalized[:, None]
        forecast = self.objective.predict(self.network, frames, lead_time) * std + mean
        valid = self.masks.valid(frames[:, -1])
        return forecast if valid is None else forecast.where(valid, torch.nan)


def _goes_in(model: TrainedNetwork, channel: int) -> bool:
    return bool(model.fields[channel] != getattr(model.objective, "label_field", None))


def write_programs(model: TrainedNetwork, kinds: Sequence[Kind], directory: Path) -> dict[str, str]:
    """Write the programs of these kinds; return the file of each kind, and its batch in words.

    Raises:
        ValueError: the network cannot be such a program, or the program gives other numbers.
    """
    if not kinds:
        return {}
    if not model.trained_on.grids:
        raise ValueError(
            f"--also {kinds[0]}: the run does not record its grid, as an earlier version trained it. "
            "Resume it for a step, or export without --also"
        )
    forecast = Forecast(model).eval().requires_grad_(False)  # nor do the program's answers need it
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported, batch = _traced(forecast, model)
        if "torch-export" in kinds:
            path = directory / FILES["torch-export"]
            torch.export.save(exported, path)
            # the file was just written here
            again: Any = torch.export.load(path).module()
            _require_same(forecast, again, model, batch, "torch-export")
        if "onnx" in kinds:
            _write_onnx(exported, directory / FILES["onnx"], forecast, model, batch)
    return {
        FILES[kind]: "any number of samples" if batch is None else "one sample" for kind in kinds
    }


def _traced(forecast: Forecast, model: TrainedNetwork) -> tuple[Any, int | None]:
    """Return the program, and its number of samples; None: any."""
    try:
        inputs = _samples(model, 2)
        size = torch.export.Dim("batch", max=_MOST_SAMPLES)
        shapes = tuple({0: size} for _ in inputs)
        return torch.export.export(forecast, inputs, dynamic_shapes=shapes), None
    except Exception:  # torch has a dozen of them for "depends on the number of samples"
        logging.getLogger(__name__).debug("no program of any batch", exc_info=True)
    try:
        return torch.export.export(forecast, _samples(model, 1)), 1
    except Exception as error:
        raise ValueError(
            f"torch cannot export {type(forecast.network).__name__} as a program: "
            f"{_first_line(error)}. Forecaster.load of the directory works"
        ) from error


def _samples(model: TrainedNetwork, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return made-up inputs around the training's mean, with lead times of the training."""
    generator = torch.Generator().manual_seed(seed)
    grid = model.trained_on.grids[0]
    names = [
        n for n in range(len(model.fields)) if model.objective.call != "image" or _goes_in(model, n)
    ]
    frames = (model.input_frames,) if model.input_frames > 1 else ()
    values = torch.randn(count, *frames, len(names), *grid, generator=generator)
    mean = torch.tensor(model.normalization.mean)[names].reshape(-1, *(1,) * len(grid))
    std = torch.tensor(model.normalization.std)[names].reshape(-1, *(1,) * len(grid))
    fields = values * std + mean
    for channel in model.field_masks.channels:
        fields.select(-len(grid) - 1, channel).fill_(1.0)
    if model.objective.call == "image":
        return (fields,)
    leads = model.trained_on.lead_times or (1.0,)
    return fields, torch.tensor([leads[-(n % len(leads)) - 1] for n in range(count)])


def _require_same(
    forecast: Forecast, program: Any, model: TrainedNetwork, batch: int | None, kind: Kind
) -> None:
    """Raise ValueError unless a program gives the model's numbers on new samples."""
    for seed, count in enumerate((1, 3) if batch is None else (batch, batch), start=1):
        inputs = _samples(model, count, seed)
        expected, found = forecast(*inputs), program(*inputs)
        finite = torch.isfinite(expected)
        size = float(expected[finite].abs().max()) if finite.any() else 1.0
        apart = (found - expected).abs()[finite]
        largest = float(apart.max()) if apart.numel() else 0.0
        if found.shape != expected.shape or not largest <= ROUNDING * size:
            raise ValueError(
                f"--also {kind}: the program's answers differ from the model's by {largest:.3g}, with "
                f"values up to {size:.3g}, which is more than rounding, so it is not kept. Export "
                f"without --also {kind}"
            )


def _write_onnx(
    exported: Any, path: Path, forecast: Forecast, model: TrainedNetwork, batch: int | None
) -> None:
    absent = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(f"--also onnx needs {' and '.join(absent)}: pip install 'pelagos[onnx]'")
    onnxruntime = importlib.import_module("onnxruntime")
    network = type(forecast.network).__name__
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False)
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        path.unlink(missing_ok=True)
        raise ValueError(
            f"--also onnx: {network} cannot be written as ONNX ({_reason(error)}). Networks with "
            "complex numbers, such as the spectral layers of an FNO, are among these. "
            "--also torch-export works"
        ) from error
    finally:
        logging.disable(level)

    def run(*inputs: Tensor) -> Tensor:
        named = zip((node.name for node in session.get_inputs()), inputs, strict=True)
        return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in named})[0])

    _require_same(forecast, run, model, batch, "onnx")


def _reason(error: BaseException) -> str:
    """Return the last cause in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
