"""A trained model as a function of physical fields: loaded from a run, or from an exported directory."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.channels import Channels, fill_absent
from pelagos.data_pipelines.streaming.given_fields import given_fields
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation.forecasting.rollout import Predict
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.jobs.weights.described_parts import described_objective, loaded_network
from pelagos.jobs.weights.model_directory import DESCRIPTION_FILE
from pelagos.jobs.weights.trained_description import checked_description, read_trained_description
from pelagos.models.low_rank import merged
from pelagos.models.objectives import (
    NO_MASKS,
    FieldMasks,
    FieldObjective,
    Segmentation,
    default_field_groups,
    without_fields,
)
from pelagos.models.pretrained import WEIGHTS_FILE, read_weights, write_weights
from pelagos.models.sliding_window import predict_by_patches
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, named_step
from pelagos.platform.records.runs import RunDirectory, check_identity
from pelagos.platform.storage_choice import options_for


def usual_groups(fields: Sequence[str], dataset: ReadableDataset) -> dict[str, tuple[str, ...]]:
    """Return the fields that are scored together in a dataset where a job does not say.

    These are the components of a vector, of the fields that are not given there.
    """
    usual = default_field_groups(fields)
    return without_fields(usual, given_fields(dataset)) or usual


class Forecaster:
    """Predicts fields a lead time ahead.

    Attributes:
        fields: channel names in the order of every `channel` axis here.
        normalization: between physical and model values.
    """

    def __init__(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Build the described network and load its weights.

        Raises:
            ValueError: the description has no normalisation, describes no network that can be built,
                or one that these weights do not fit.
        """
        self.description = dict(description)
        self.fields = tuple(description["fields"])
        self.normalization = _normalization(description)
        self.objective = described_objective(description)
        self.model: nn.Module = loaded_network(description, weights, "the description")
        self.model.eval()

    @property
    def weights(self) -> str:
        """`ema` for averaged weights, else `model`."""
        return str(self.description.get("weights", "model"))

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

    def to(self, device: torch.device) -> "Forecaster":
        """Move the network to a device, where fields are then taken; return the forecaster."""
        self.model.to(device)
        return self

    def view(
        self,
        dataset: ReadableDataset,
        offset: Mapping[str, float],
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> EvaluationData:
        """Return a dataset in the model's channels: normalised, constants in, absent fields zero.

        `groups` names the fields that are scored together; None: the components of a vector, of
        the fields that are not given in the dataset.
        """
        masks = {**self.description.get("masks", {}), **dataset.spec.masks}
        channels = Channels.of(
            dataset, self.normalization, offset=offset, masks=set(masks.values())
        )
        return EvaluationData.from_dataset(
            dataset,
            channels,
            groups=groups or usual_groups(self.fields, dataset),
            statistics=dataset.statistics,
            masks=masks,
        )

    def predict_on(self, data: EvaluationData) -> Predict:
        """Return `predict_normalized` of a dataset's states, whose absent channels are zero.

        The model sees the same there as in training, in every step of a rollout.
        """
        absent = [name for name, has in zip(self.fields, data.present, strict=True) if not has]

        def predict(frames: Tensor, lead_time: Tensor) -> Tensor:
            return self.predict_normalized(self._fill(frames, absent), lead_time)

        return predict if self._absent_value and absent else self.predict_normalized

    @torch.no_grad()
    def predict_normalized(self, frames: Tensor, lead_time: Tensor) -> Tensor:
        """Return normalised fields `[batch, channel, y, x]`, `lead_time [batch]` after `frames`.

        `frames` is one frame `[batch, channel, y, x]`, or several `[batch, frame, channel, y, x]`
        for an objective that forecasts from `objective.input_frames` frames.
        """
        several = frames if self._channel_axis == 2 else frames[:, None]
        return self.objective.predict(self.model, several, lead_time)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the answer to normalised images `[batch, channel, *grid]`.

        That of a classifier is `[batch, class]`, of a segmentation network `[batch, class, *grid]`.

        A segmentation network that was trained on crops sees images larger than they are in
        overlapping patches of the crops' size (`models.sliding_window`).
        """
        patch = tuple(self.description.get("patch", ()))
        sizes = zip(images.shape[2:], patch, strict=False)
        if isinstance(self.objective, Segmentation) and any(n > side for n, side in sizes):
            return predict_by_patches(self.model, images, patch)
        answer = self.model(images)
        finest: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return finest

    def predict(self, fields: Tensor, lead_time: Tensor, absent: Collection[str] = ()) -> Tensor:
        """Return fields in physical units `[batch, channel, y, x]`, `lead_time` after `fields`.

        `absent` names the fields that the data lack: whatever `fields` hold there, the model sees
        the same as for absent fields in training, and NaN comes back, as it forecasts nothing there.
        NaN also comes back where the latest frame has no value, which the masks among the fields
        show; the values of `fields` there do not matter, NaN included. An absent mask is 1 everywhere.

        Raises:
            ValueError: `absent` names no field of the model, or every one.
        """
        self._check_absent(absent)
        normalized = self._fill(self.normalization.apply(fields, self._channel_axis), absent)
        forecast = self.normalization.invert(self.predict_normalized(normalized, lead_time), 1)
        forecast[:, [self.fields.index(name) for name in absent]] = torch.nan
        latest = normalized if self._channel_axis == 1 else normalized[:, -1]
        valid = self._masks.valid(latest)
        return forecast if valid is None else forecast.where(valid, torch.nan)

    @property
    def _masks(self) -> FieldMasks:
        return (
            self.objective.field_masks if isinstance(self.objective, FieldObjective) else NO_MASKS
        )

    @property
    def _absent_value(self) -> float:
        """The value of absent channels in training, after normalisation."""
        return float(self.description.get("absent_value", 0.0))

    @property
    def _channel_axis(self) -> int:
        """Input axes: one frame `[batch, channel, …]`, or several, `[batch, frame, channel, …]`."""
        return 1 if self.objective.input_frames == 1 else 2

    def _fill(self, normalized: Tensor, absent: Collection[str]) -> Tensor:
        return fill_absent(
            normalized,
            self.fields,
            absent,
            masks=[self.fields[channel] for channel in self._masks.channels],
            absent_value=self._absent_value,
            axis=self._channel_axis,
        )

    def _check_absent(self, absent: Collection[str]) -> None:
        strangers = sorted(set(absent) - set(self.fields))
        if strangers or set(absent) == set(self.fields):
            wrong = (
                f"{', '.join(strangers)}, not fields of the model" if strangers else "all fields"
            )
            raise ValueError(
                f"absent names {wrong}: it takes some of {', '.join(self.fields)}, not all"
            )

    def save(self, directory: Path) -> None:
        """Write weights (safetensors) and description (JSON) into a new directory."""
        directory.mkdir(parents=True)
        tensors = {k: v.contiguous() for k, v in self.model.state_dict().items()}
        write_weights(tensors, directory / WEIGHTS_FILE)
        (directory / DESCRIPTION_FILE).write_text(json.dumps(self.description, indent=1))

    @classmethod
    def load(cls, directory: Path) -> "Forecaster":
        """Return the forecaster that `save` or `pelagos export` wrote."""
        description = read_trained_description(directory / DESCRIPTION_FILE)
        return cls(description, read_weights(directory))


def _normalization(description: Mapping[str, Any]) -> Normalization:
    told = description.get("normalization")
    if told is None or tuple(told["fields"]) != tuple(description["fields"]):
        raise ValueError(
            "the description of the trained network has no normalization of its fields: it forecasts "
            "none"
        )
    return Normalization.from_dict(told)


def trained_weights(
    run: RunDirectory, checkpoint: str = "last", weights: str = "auto"
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Return description, state dict and step of a run's checkpoint; the optimizer is not read.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no such weights.
        RunError: the checkpoint is of another run.
    """
    job = run.job()
    store = CheckpointStore(run.checkpoint_uri, options_for(run.checkpoint_uri, job.storage))
    return store_weights(store, checkpoint, weights, run)


def store_weights(
    store: CheckpointStore,
    checkpoint: str = "last",
    weights: str = "auto",
    run: RunDirectory | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Return description, state dict and step of a checkpoint, low-rank updates merged in.

    The description's `weights` says which they are: `ema` for averaged ones, else `model`.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no such weights.
        RunError: it is of another run than `run`.
    """
    step = named_step(store, checkpoint)
    trainer_state = store.trainer_state(step)
    if run is not None:
        check_identity(run, store.uri, step, trainer_state)
    where = f"{store.uri} step {step}"
    description = checked_description(trainer_state.get("forecaster"), where)
    # together: each call fetches and verifies the whole checkpoint
    tensors = store.load_named(step, ("model.",) if weights == "model" else ("model.", "ema."))
    averaged = {n: tensors.pop(n) for n in list(tensors) if n.startswith("ema.")}
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if weights == "ema" and not averaged:
        raise CheckpointError(
            f"{store.uri} has no averaged weights; set ema_decay to train them, or leave weights out"
        )
    state |= {name.removeprefix("ema."): tensor for name, tensor in averaged.items()}
    description["weights"] = "ema" if averaged else "model"
    if (updates := description.get("lora")) is not None:
        state = merged(state, updates["alpha"])
    return description, state, step


def as_arrays(model_input: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `fields [batch, channel, y, x]` and `lead_time [batch]` of an MLflow request.

    Raises:
        ValueError: one is absent, or holds something other than numbers.
    """
    absent = [key for key in ("fields", "lead_time") if key not in model_input]
    if absent:
        raise ValueError(f"the request has no {' and no '.join(absent)}")
    return (
        np.asarray(model_input["fields"], dtype=np.float32),
        np.asarray(model_input["lead_time"], dtype=np.float32).reshape(-1),
    )
