"""The code that MLflow stores beside a registered model ("models from code": nothing is pickled)."""

from pathlib import Path

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pelagos.jobs.forecaster import Forecaster, as_arrays


class RegisteredForecaster(PythonModel):
    """`Forecaster` behind MLflow's generic predict, in physical units."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load weights and description from the model's artifacts."""
        self.forecaster = Forecaster.load(Path(context.artifacts["forecaster"]))

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
