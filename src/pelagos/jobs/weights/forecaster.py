"""A trained model as a function of physical fields: loaded from a run, a directory, or a registry."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pelagos.jobs.weights.array_input import ArrayInput, Given, is_labelled
from pelagos.jobs.weights.labelled import Unpacked, pack, unpack
from pelagos.jobs.weights.locations import model_directory
from pelagos.jobs.weights.model_directory import DESCRIPTION_FILE
from pelagos.jobs.weights.run_weights import trained_weights
from pelagos.jobs.weights.trained_description import read_trained_description
from pelagos.jobs.weights.trained_network import TrainedNetwork
from pelagos.jobs.weights.trained_on import check_finite, warn, warn_of_strange_sizes
from pelagos.models.pretrained import WEIGHTS_FILE, read_weights, write_weights
from pelagos.platform.records.runs import RunDirectory

_AT_ONCE = 16  # samples that go through the network together, whatever the number of leads


class Forecaster(TrainedNetwork):
    """Predicts fields a lead time ahead.

    Attributes:
        fields: channel names in the order of every `channel` axis here.
        normalization: between physical and model values.
        trained_on: lead times, grids and units of the training, as far as they were recorded.
    """

    @classmethod
    def from_run(
        cls, run: RunDirectory, checkpoint: str = "last", weights: str = "auto"
    ) -> tuple["Forecaster", int]:
        """Return the forecaster of a run's checkpoint (`last`, `best` or a step), and its step.

        `weights`: `ema`, the averaged ones, `model`, the weights themselves, or `auto`, the averaged
        ones where the run keeps them; `weights` of the forecaster says which it has.

        Raises:
            CheckpointError: there is no such checkpoint, or it has no such weights.
        """
        description, state, step = trained_weights(run, checkpoint, weights)
        return cls(description, state), step

    def predict(
        self,
        fields: Given,
        lead_time: Any = None,
        absent: Collection[str] = (),
        *,
        names: Sequence[str] | None = None,
        offset: Mapping[str, float] | None = None,
    ) -> Given:
        """Return fields in physical units, `lead_time` after `fields`, as the kind that was given.

        Args:
            fields: a torch or numpy array `[batch, channel, *grid]`, or `[channel, *grid]`; several
                frames `[batch, frame, channel, *grid]` where the model needs them. Or an xarray
                DataArray or Dataset, whose fields and axes are found by name (`labelled`).
            lead_time: in the unit of time of the training data; None: the shortest it was trained for.
                Several leads give one forecast for each: of arrays, leads and samples are paired, and
                one sample or one lead goes with all others; xarray gets an axis `lead_time`.
            absent: fields that the data lack: whatever an array holds there, the model sees the same as
                for absent fields in training, and NaN comes back, as it forecasts nothing there. NaN
                also comes back where the latest frame has no value, which the masks among the fields
                show; the values of `fields` there do not matter, NaN included. An absent mask is 1
                everywhere.
            names: of an array's channels, in order; default: `self.fields`. The answer has that order.
            offset: numbers that were subtracted from fields in training; default: as recorded there.

        Raises:
            ValueError: the shape, a value, a lead or a name is not one that the model can take.
        """
        self._check_absent(absent)
        if is_labelled(fields):
            leads, is_list = self._leads(lead_time)
            given = unpack(fields, self.fields, absent, self.trained_on, self.input_frames)
            values, samples = self._as_samples(given)
            count = len(leads) if is_list else 1
            repeated = values.repeat_interleave(count, dim=0)
            paired = torch.tensor(leads).repeat(len(values))
            answer = self._forecast(repeated, paired, given.absent, offset)
            shape = (*samples, *((count,) if is_list else ()), *answer.shape[1:])
            told = leads if is_list else leads[0]
            return cast(Given, self._packed(answer.reshape(shape), given, told))
        array = self._array(fields, absent, names)
        leads, is_list = self._leads(lead_time)
        values, paired, has_samples = array.paired(leads, is_list)
        answer = self._forecast(values, paired, array.absent, offset)
        return cast(Given, array.answer(answer if has_samples else answer[0], 1 - answer.ndim))

    def rollout(
        self,
        fields: Given,
        steps: int,
        lead_time: float | None = None,
        absent: Collection[str] = (),
        *,
        names: Sequence[str] | None = None,
        offset: Mapping[str, float] | None = None,
    ) -> Given:
        """Return the forecasts of `steps` steps of `lead_time`, each made from the one before.

        As `predict`, with an axis of leads: arrays are `[batch, step, channel, *grid]`, or
        `[step, channel, *grid]` from fields without a batch.

        Raises:
            ValueError: as `predict`; or `steps` is below 1.
        """
        leads, is_list = self._leads(lead_time)
        lead = leads[0]
        if is_list or not hasattr(steps, "__index__") or steps < 1:
            raise ValueError(
                "rollout takes one lead_time, of each step, and a whole number of steps, at least one; "
                f"got {lead_time} and steps={steps}"
            )
        self._check_absent(absent)
        if is_labelled(fields):
            given = unpack(fields, self.fields, absent, self.trained_on, self.input_frames)
            values, samples = self._as_samples(given)
            answer = self._rollout(values, steps, lead, given.absent, offset)
            shape = (*samples, steps, *answer.shape[2:])
            times = [lead * (n + 1) for n in range(steps)]
            return cast(Given, self._packed(answer.reshape(shape), given, times))
        array = self._array(fields, absent, names)
        answer = self._rollout(array.values, steps, lead, array.absent, offset)
        whole = answer if array.has_samples else answer[0]
        return cast(Given, array.answer(whole, 2 - answer.ndim))

    def _array(
        self, fields: Any, absent: Collection[str], names: Sequence[str] | None
    ) -> ArrayInput:
        count = self.trained_on.num_dimensions
        return ArrayInput.of(fields, self.fields, absent, names, self.channel_axis, count)

    def lead_of_step(self, lead_time: float | None) -> float:
        """Return a lead time, or the shortest of the training if none is given. Raises as `predict`."""
        return self._leads(lead_time)[0][0]

    def _leads(self, lead_time: Any) -> tuple[list[float], bool]:
        """Return the lead times, checked, and whether they were given as several."""
        if self.objective.call not in ("frame", "window"):
            raise ValueError(
                f"the model was trained for {self.description['objective']['name']}, which makes no "
                "forecasts: use logits"
            )
        if lead_time is None:
            lead_time = self.trained_on.step
        if lead_time is None:
            raise ValueError(
                "lead_time: expected a time ahead, as the training did not record its own"
            )
        try:
            given = np.asarray(
                lead_time.detach().cpu() if isinstance(lead_time, Tensor) else lead_time
            )
        except (TypeError, ValueError):
            given = np.asarray(None)
        if given.size and given.dtype.kind not in "fiu":  # a timedelta would count as its number
            raise ValueError(
                f"lead_time {lead_time!r}: expected a number, or several, in the unit of time of the "
                f"training data ({self.trained_on.time_unit})"
            )
        leads = [float(lead) for lead in given.reshape(-1)]
        if given.ndim > 1 or not leads:
            raise ValueError(
                f"lead_time has shape {given.shape}: expected a number or a list of them"
            )
        self.trained_on.check_leads(leads, sees_lead=self.objective.call == "frame")
        return leads, given.ndim == 1

    def _packed(self, answer: Tensor, given: Unpacked, leads: float | list[float]) -> Any:
        return pack(answer.cpu().numpy(), given, self.fields, leads, self.trained_on)

    def _as_samples(self, given: Unpacked) -> tuple[Tensor, tuple[int, ...]]:
        """Return labelled fields with one axis of samples, and the shape of their own."""
        count = len(given.layout.samples)
        samples = given.values.shape[:count]
        return torch.from_numpy(given.values.reshape(-1, *given.values.shape[count:])), samples

    def _forecast(
        self,
        fields: Tensor,
        leads: Tensor,
        absent: Collection[str],
        offset: Mapping[str, float] | None,
    ) -> Tensor:
        """Return physical fields `[batch, channel, *grid]`, `leads [batch]` later."""
        normalized, shift = self._normalized(fields, absent, offset)
        leads = leads.to(normalized)
        parts = [slice(n, n + _AT_ONCE) for n in range(0, len(normalized), _AT_ONCE)]
        forecast = torch.cat([self.predict_normalized(normalized[p], leads[p]) for p in parts])
        return self._physical(forecast, normalized, absent, shift)

    def _rollout(
        self,
        fields: Tensor,
        steps: int,
        lead: float,
        absent: Collection[str],
        offset: Mapping[str, float] | None,
    ) -> Tensor:
        """Return physical fields `[batch, step, channel, *grid]`; absent ones go in as in training."""
        state, shift = self._normalized(fields, absent, offset)
        leads = state.new_full((len(state),), lead)
        found = []
        for _ in range(steps):
            forecast = self._fill_frame(self.predict_normalized(state, leads), absent)
            found.append(self._physical(forecast, state, absent, shift).to(fields.device))
            several = self.channel_axis == 2
            state = torch.cat((state[:, 1:], forecast[:, None]), dim=1) if several else forecast
        answer = torch.stack(found, dim=1)
        finite = torch.isfinite(forecast).all()
        if not finite:
            warn(
                f"the rollout does not stay finite over {steps} steps: fewer steps, or a longer lead "
                "time per step, may hold"
            )
        return answer

    def _normalized(
        self, fields: Tensor, absent: Collection[str], offset: Mapping[str, float] | None
    ) -> tuple[Tensor, Tensor]:
        """Return fields as the network sees them, checked, and what was subtracted from them.

        The latter is `[channel, 1, …]`.
        """
        self._check_absent(absent)
        axis = self.channel_axis
        values = fields.to(next(self.model.parameters()).device)
        shape = (len(self.fields), *(1,) * (values.ndim - axis - 1))
        shifts = self.trained_on.offset() if offset is None else offset
        strangers = sorted(set(shifts) - set(self.fields))
        if strangers and offset is not None:
            raise ValueError(
                f"offset names {', '.join(strangers)}; the fields are {', '.join(self.fields)}"
            )
        shift = values.new_tensor([shifts.get(name, 0.0) for name in self.fields]).reshape(shape)
        normalized = self._fill(self.normalization.apply(values - shift, axis), absent)
        self.trained_on.check_grid(tuple(values.shape[axis + 1 :]))
        valid = self.field_masks.valid(normalized, axis=axis)
        check_finite(normalized, valid, self.fields, axis)
        numbers = zip(self.fields, self.normalization.mean, self.normalization.std, strict=True)
        constants = ", ".join(f"{name} {mean:.3g} ± {std:.3g}" for name, mean, std in numbers)
        seen = normalized if valid is None else normalized.where(valid, 0.0)
        warn_of_strange_sizes(seen, self.fields, list(absent), constants, axis)
        return normalized, shift

    def _physical(
        self, forecast: Tensor, state: Tensor, absent: Collection[str], shift: Tensor
    ) -> Tensor:
        """Return a forecast in physical units, NaN where there is none."""
        latest = state if self.channel_axis == 1 else state[:, -1]
        valid = self.field_masks.valid(latest)
        physical = self.normalization.invert(forecast, 1) + shift
        physical[:, [self.fields.index(name) for name in absent]] = torch.nan
        whole: Tensor = physical if valid is None else physical.where(valid, torch.nan)
        return whole

    def _check_absent(self, absent: Collection[str]) -> None:
        if isinstance(absent, str):
            raise ValueError(f"absent is the text {absent!r}, expected a list: absent=[{absent!r}]")
        strangers = sorted(set(absent) - set(self.fields))
        if strangers or set(absent) == set(self.fields):
            wrong = (
                f"{', '.join(strangers)}, which the model does not have"
                if strangers
                else "all fields"
            )
            raise ValueError(
                f"absent names {wrong}; it may name some of {', '.join(self.fields)}, but not all"
            )

    def save(self, directory: Path) -> None:
        """Write weights (safetensors) and description (JSON) into a new directory."""
        directory.mkdir(parents=True)
        self.write(directory)

    def write(self, directory: Path) -> None:
        """Write weights and description into an existing directory."""
        tensors = {k: v.contiguous() for k, v in self.model.state_dict().items()}
        write_weights(tensors, directory / WEIGHTS_FILE)
        (directory / DESCRIPTION_FILE).write_text(json.dumps(self.description, indent=1))

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        tracking_uri: str | None = None,
    ) -> "Forecaster":
        """Return the forecaster of an exported directory, of the hub, or of MLflow's registry.

        Args:
            source: a directory that `save` or `pelagos export` wrote; `OWNER/NAME` on the Hugging Face
                hub; or `models:/NAME`, `models:/NAME/VERSION`, `models:/NAME@ALIAS`.
            revision: branch, tag or commit on the hub.
            tracking_uri: of MLflow; default: `MLFLOW_TRACKING_URI`, else the default of job files.

        Raises:
            ValueError: there is no such model, or it is no trained network; or it needs a plugin that
                is not imported.
        """
        with model_directory(source, revision, tracking_uri) as directory:
            description = read_trained_description(directory / DESCRIPTION_FILE)
            return cls(description, read_weights(directory))


def as_arrays(model_input: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `fields [batch, channel, y, x]` and `lead_time [batch]` of an MLflow request.

    Raises:
        ValueError: one is absent, or holds something other than numbers.
    """
    absent = [key for key in ("fields", "lead_time") if key not in model_input]
    if absent:
        raise ValueError(f"the request lacks {' and '.join(absent)}")
    return (
        np.asarray(model_input["fields"], dtype=np.float32),
        np.asarray(model_input["lead_time"], dtype=np.float32).reshape(-1),
    )
