"""Classes of images: those of whole images, or of each point."""

import torch
import xarray as xr

from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.labelled import Labelled, unpack
from pelagos.models.objectives import Classification, Segmentation


def input_fields(forecaster: Forecaster) -> tuple[str, ...]:
    """Return the fields that the network takes: all, but not the label of a segmentation."""
    objective = forecaster.objective
    label = objective.label_field if isinstance(objective, Segmentation) else None
    return tuple(name for name in forecaster.fields if name != label)


@torch.no_grad()
def classes_of(forecaster: Forecaster, images: Labelled) -> xr.Dataset:
    """Return `label` of each image `[*samples]`, or of each point `[*samples, *grid]`, as int16.

    Of whole images also `probability [*samples, class]`.

    Raises:
        ValueError: the network gives no classes, or the images lack its fields.
    """
    objective = forecaster.objective
    if not isinstance(objective, Classification | Segmentation):
        raise ValueError(
            f"the model was trained for {forecaster.description['objective']['name']}, which makes "
            "neither forecasts nor classes"
        )
    fields = input_fields(forecaster)
    given = unpack(images, fields, (), forecaster.trained_on, 1)
    count = len(given.layout.samples)
    values = torch.from_numpy(given.values.reshape(-1, *given.values.shape[count:]))
    if not torch.isfinite(values).all():
        raise ValueError(
            "the images hold NaN or infinite values; the network needs numbers everywhere"
        )
    numbers = [forecaster.fields.index(name) for name in fields]
    mean, std = (
        torch.tensor([constants[n] for n in numbers]).view(-1, *(1,) * (values.ndim - 2))
        for constants in (forecaster.normalization.mean, forecaster.normalization.std)
    )
    device = next(forecaster.model.parameters()).device
    logits = forecaster.logits(((values - mean) / std).to(device)).cpu()
    samples, shape = given.layout.samples, given.values.shape[:count]
    of_points = isinstance(objective, Segmentation)
    dims = (*samples, *(given.layout.grid if of_points else ()))
    labels = logits.argmax(dim=1).to(torch.int16).numpy()
    attributes = dict(images.attrs)
    found = {"label": (dims, labels.reshape(*shape, *labels.shape[1:]), attributes)}
    if not of_points:
        probability = logits.softmax(dim=1).numpy().reshape(*shape, -1)
        found["probability"] = ((*samples, "class"), probability, {})
    coordinates = {
        name: c.variable for name, c in images.coords.items() if set(c.dims) <= set(dims)
    }
    return xr.Dataset(found, coordinates)
