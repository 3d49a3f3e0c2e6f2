"""The job's section about the task that the network learns."""

from typing import Any

from pydantic import Field

from pelagos.platform.config.section import Section


class ObjectiveConfig(Section):
    """The learning task of the network."""

    name: str = Field(
        "all2all", description="Name of the objective (docs/models.md), or of a plugin's."
    )
    config: dict[str, Any] = Field(
        {}, description="Its options (docs/models.md), e.g. {max_lead_steps: 10}."
    )
