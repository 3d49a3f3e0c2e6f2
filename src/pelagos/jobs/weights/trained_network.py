"""A trained network with its normalisation: as evaluation uses it, in the values that it sees."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.channels import Channels, fill_absent
from pelagos.data_pipelines.streaming.given_fields import given_fields
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation.forecasting.rollout import Predict
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.jobs.weights.described_parts import described_objective, loaded_network
from pelagos.jobs.weights.trained_on import TrainedOn
from pelagos.models.objectives import (
    NO_MASKS,
    FieldMasks,
    FieldObjective,
    Segmentation,
    default_field_groups,
    without_fields,
)
from pelagos.models.sliding_window import predict_by_patches


def usual_groups(fields: Sequence[str], dataset: ReadableDataset) -> dict[str, tuple[str, ...]]:
    """Return the fields that are scored together in a dataset where a job does not say.

    These are the components of a vector, of the fields that are not given there.
    """
    usual = default_field_groups(fields)
    return without_fields(usual, given_fields(dataset)) or usual


class TrainedNetwork:
    """A network that was trained on named fields, and the way between them and its own values.

    Attributes:
        fields: channel names in the order of every `channel` axis here.
        normalization: between physical and model values.
        trained_on: lead times, grids and units of the training, as far as they were recorded.
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
        self.trained_on = TrainedOn.of(description)
        self.objective = described_objective(description)
        self.model: nn.Module = loaded_network(description, weights, "the description")
        self.model.eval()

    @property
    def input_frames(self) -> int:
        """Frames that a forecast starts from."""
        return self.objective.input_frames

    @property
    def weights(self) -> str:
        """`ema` for averaged weights, else `model`."""
        return str(self.description.get("weights", "model"))

    def to(self, device: torch.device) -> Self:
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
        several = frames if self.channel_axis == 2 else frames[:, None]
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

    @property
    def field_masks(self) -> FieldMasks:
        """Which channels say where others have values."""
        return (
            self.objective.field_masks if isinstance(self.objective, FieldObjective) else NO_MASKS
        )

    @property
    def _absent_value(self) -> float:
        """The value of absent channels in training, after normalisation."""
        return float(self.description.get("absent_value", 0.0))

    @property
    def channel_axis(self) -> int:
        """Input axes: one frame `[batch, channel, …]`, or several, `[batch, frame, channel, …]`."""
        return 1 if self.objective.input_frames == 1 else 2

    def _fill(self, normalized: Tensor, absent: Collection[str]) -> Tensor:
        return self._fill_frame(normalized, absent, self.channel_axis)

    def _fill_frame(self, normalized: Tensor, absent: Collection[str], axis: int = 1) -> Tensor:
        return fill_absent(
            normalized,
            self.fields,
            absent,
            masks=[self.fields[channel] for channel in self.field_masks.channels],
            absent_value=self._absent_value,
            axis=axis,
        )


def _normalization(description: Mapping[str, Any]) -> Normalization:
    told = description.get("normalization")
    if told is None or tuple(told["fields"]) != tuple(description["fields"]):
        raise ValueError(
            "the description of the trained network has no normalization of its fields, so the "
            "network makes no forecasts"
        )
    return Normalization.from_dict(told)
