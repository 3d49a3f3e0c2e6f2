"""The section that ends a training before its last step: on a target, or when it no longer improves."""

from typing import Self

from pydantic import Field, model_validator

from pelagos.platform.config.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class StopWhenConfig(Section):
    """Early stopping by the validation loss: a target, or a number of validations without progress.

    The run then counts as finished, with a checkpoint of its last step. The learning rate follows
    `total_steps` all the same.
    """

    target: PositiveFloat | None = Field(
        None, description="Stop at the first validation loss of at most this."
    )
    patience: PositiveInt | None = Field(
        None,
        description="Stop after this many validations in a row, none of which lowered the best loss "
        "by more than `min_delta`.",
    )
    min_delta: NonNegativeFloat = Field(0.0, description="Least decrease that counts as progress.")
    dataset: str | None = Field(
        None, description="Name of the dataset whose loss counts; default: that of all samples."
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.target is None and self.patience is None:
            raise ValueError("a `target`, or a `patience`, or both")
        return self
