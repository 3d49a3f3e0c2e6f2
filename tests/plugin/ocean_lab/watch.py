"""Callbacks of the laboratory."""

import json

from pelagos.platform.callbacks import Callback


class WeightNorms(Callback):
    """Logs the norm of the weights, and writes down every call."""

    def __init__(self, file: str, fail_at: int = 0) -> None:
        self.file, self.fail_at = file, fail_at

    def on_start(self, view, step):
        self.view = view
        self._note("start", step=step, rank=view.rank, world_size=view.world_size)

    def on_step(self, step, values):
        if step == self.fail_at:
            raise ZeroDivisionError("as asked")
        squares = sum(float(w.float().square().sum()) for w in self.view.weights().values())
        self._note("step", step=step, loss=values["loss"], rank=self.view.rank)
        return {"weight_norm": squares**0.5}

    def on_validation(self, step, values):
        self._note("validation", step=step, loss=values["validation_loss"])

    def on_checkpoint(self, step, uri):
        self._note("checkpoint", step=step)

    def on_event(self, kind, details):
        self._note(f"event {kind}", step=details.get("step"))

    def on_end(self, outcome):
        self._note(f"end {outcome.kind}", step=outcome.step, rank=self.view.rank)

    def _note(self, call, **details):
        with open(self.file, "a") as notes:
            notes.write(json.dumps({"call": call, **details}) + "\n")
