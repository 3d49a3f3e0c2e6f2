"""A forecaster as `huggingface_hub` loads and saves models: `from_pretrained`, `save_pretrained`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.locations import FILES_OF_A_MODEL
from pelagos.jobs.weights.model_directory import write_json
from pelagos.models.pretrained import CONFIG_FILE, Pretrained, describe


class HubForecaster(nn.Module, PyTorchModelHubMixin, library_name="pelagos", tags=["pde"]):
    """A trained model behind the hub's mixin.

    `HubForecaster.from_pretrained(DIR or "OWNER/NAME")` reads what `pelagos export` wrote;
    `push_to_hub("OWNER/NAME")` uploads it. A directory on this machine is read without any network.
    """

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.network = forecaster.model

    def forward(
        self, fields: Tensor, lead_time: Any = None, absent: Collection[str] = ()
    ) -> Tensor:
        """Return `Forecaster.predict`: physical fields, `lead_time` after `fields`."""
        return self.forecaster.predict(fields, lead_time, absent)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **unused: Any,
    ) -> Self:
        """Called by `from_pretrained`; names and shapes of weights are always compared."""
        place = Path(model_id)
        if not place.is_dir():
            place = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=list(FILES_OF_A_MODEL),
                )
            )
        return cls(Forecaster.load(place).to(torch.device(map_location))).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by `save_pretrained`, into an existing directory."""
        self.forecaster.write(save_directory)
        network = self.forecaster.model
        if isinstance(network, Pretrained):
            name = self.forecaster.description["model"]["name"]
            config = describe(network, network.state_dict(), name)
            write_json(save_directory / CONFIG_FILE, config)
