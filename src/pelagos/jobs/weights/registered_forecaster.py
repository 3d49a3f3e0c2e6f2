"""The code that MLflow stores next to a registered model ("models from code": nothing is pickled)."""

from pathlib import Path

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pelagos import plugins
from pelagos.jobs.weights.forecaster import Forecaster, as_arrays
from pelagos.jobs.weights.model_directory import DESCRIPTION_FILE
from pelagos.platform.records.run_files import read_json


class RegisteredForecaster(PythonModel):
    """`Forecaster` behind MLflow's generic predict, in physical units."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load weights and description from the model's artifacts.

        First the plugins that came with them, which are this model's code as this file is.
        """
        directory = Path(context.artifacts["forecaster"])
        plugins.load(read_json(directory / DESCRIPTION_FILE).get("plugins", ()))
        self.forecaster = Forecaster.load(directory)

    # MLflow reads type hints of `predict` as a schema; the schema is the logged signature
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return fields `[batch, channel, y, x]`, `lead_time [batch]` after `fields`.

        The parameter `absent` lists the fields that the data lack.
        """
        fields, lead_time = as_arrays(model_input)
        absent = (params or {}).get("absent", ())
        return self.forecaster.predict(
            torch.from_numpy(fields), torch.from_numpy(lead_time), list(absent)
        ).numpy()


set_model(RegisteredForecaster())
