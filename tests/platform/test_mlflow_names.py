"""Names that MLflow accepts, for any name: checked by MLflow's own validation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import (
    _validate_metric_name,
    _validate_model_name,
    _validate_tag_name,
)

from pelagos.platform.config.schema import TrackingConfig
from pelagos.platform.mlflow_records.names import MAX_LENGTH, accepted_name

AWKWARD = ["nu=0.001,seed=3", "a//b", "../a", "a/../b", ".", "/", "", "a" * 300, "é", "a\nb", "x/"]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_are_accepted(name: str) -> None:
    _validate_metric_name(accepted_name(name))


@given(st.text(max_size=300), st.text(max_size=300))
def test_every_name_is_accepted_and_stays_its_own(first: str, second: str) -> None:
    for name in (first, second):
        accepted = accepted_name(name)
        _validate_metric_name(accepted)
        _validate_tag_name(accepted)
        assert len(accepted) <= MAX_LENGTH
    assert (accepted_name(first) == accepted_name(second)) == (first == second)


def test_usual_names_stay_as_they_are() -> None:
    for name in ("loss", "loss/ns-sines", "validation_group_loss/velocity", "data.mixture.0.uri"):
        assert accepted_name(name) == name


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", ".", " ", ""])
def test_a_name_that_cannot_be_registered_is_rejected_before_the_run(name: str) -> None:
    with pytest.raises(MlflowException):
        _validate_model_name(name)
    with pytest.raises(ValueError, match="without / and :"):
        TrackingConfig(register_as=name)
    assert TrackingConfig(register_as="a model.2").register_as == "a model.2"


@pytest.mark.parametrize("tag", ["mlflow.runName", "pelagos.last_step", "pelagos.request"])
def test_tags_that_records_rely_on_are_rejected_before_the_run(tag: str) -> None:
    """With them MLflow refuses the run, or steps count as sent that are not."""
    with pytest.raises(ValueError, match="tags other than mlflow.runName"):
        TrackingConfig(tags={tag: "3"})
    free = {"mlflow.note.content": "x", "pelagos": "y", "mlflow.parentRunId": "z"}
    assert TrackingConfig(tags=free).tags == free
