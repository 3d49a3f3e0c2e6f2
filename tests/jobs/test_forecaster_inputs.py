"""A forecaster takes what people have, returns the same kind, and says what it cannot take."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import xarray as xr

from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.register import register_model
from pelagos.jobs.weights.trained_on import ForecastWarning
from pelagos.platform.mlflow_records.store import RecordedRun
from pelagos.platform.records.runs import RunDirectory

ByHand = Callable[[np.ndarray, float], np.ndarray]
FIELDS = ("density", "velocity-x", "velocity-y", "pressure")
LEAD = 0.15
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # batches of another size round otherwise


@pytest.fixture(scope="module")
def forecaster(exported: Path) -> Forecaster:
    return Forecaster.load(str(exported))


@pytest.fixture(scope="module")
def fields() -> np.ndarray:
    x = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    waves = [np.sin(x[None, :] + k) * np.cos(x[:, None]) for k in range(12)]
    return (1.5 + 0.7 * np.stack(waves).reshape(3, 4, 16, 16)).astype(np.float32)


def labelled(fields: np.ndarray) -> xr.DataArray:
    coords = {
        "member": [10, 20, 30],
        "channel": list(FIELDS),
        "y": np.arange(16) / 16,
        "x": np.arange(16) / 16,
        "height": ((), 2.5, {"units": "m"}),
    }
    dims = ("member", "channel", "y", "x")
    return xr.DataArray(fields, coords, dims, "state", {"source": "a test"})


def test_arrays_come_back_as_the_kind_and_type_that_went_in(
    forecaster: Forecaster, fields: np.ndarray, by_hand: ByHand
) -> None:
    expected = by_hand(fields, LEAD)
    answer = forecaster.predict(fields, LEAD)
    assert isinstance(answer, np.ndarray)
    np.testing.assert_allclose(answer, expected, **CLOSE)
    doubled = forecaster.predict(fields.astype(">f8"), LEAD)
    assert doubled.dtype == np.dtype(">f8")
    np.testing.assert_allclose(doubled, expected, **CLOSE)
    for dtype in (torch.float64, torch.float16):
        tensor = forecaster.predict(torch.tensor(fields, dtype=dtype), LEAD)
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == dtype
    assert forecaster.predict(fields[0], LEAD).shape == (4, 16, 16)
    np.testing.assert_allclose(forecaster.predict(fields[0], LEAD), expected[0], **CLOSE)
    # a view with negative strides, which torch does not take
    turned = forecaster.predict(fields[:, :, ::-1], LEAD)
    np.testing.assert_allclose(turned, by_hand(fields[:, :, ::-1].copy(), LEAD), **CLOSE)
    with pytest.raises(ValueError, match="fields hold complex64, expected real numbers"):
        forecaster.predict(fields.astype(np.complex64), LEAD)


def test_one_frame_goes_with_all_leads_and_one_lead_with_all_frames(
    forecaster: Forecaster, fields: np.ndarray, by_hand: ByHand
) -> None:
    leads = [0.05, 0.1, 0.2]
    each = forecaster.predict(fields[1], leads)
    expected = np.concatenate([by_hand(fields[1:2], lead) for lead in leads])
    np.testing.assert_allclose(each, expected, **CLOSE)
    np.testing.assert_array_equal(forecaster.predict(fields[1:2], tuple(leads)), each)
    paired = forecaster.predict(torch.tensor(fields), torch.tensor(leads))
    own = [by_hand(fields[n : n + 1], lead) for n, lead in enumerate(leads)]
    np.testing.assert_allclose(paired.numpy(), np.concatenate(own), **CLOSE)
    with pytest.raises(ValueError, match="3 samples and 2 lead times: expected one lead time"):
        forecaster.predict(fields, leads[:2])
    # the shortest lead of the training, if none is given
    np.testing.assert_array_equal(
        forecaster.predict(fields), forecaster.predict(fields, np.float64(0.05))
    )


def test_xarray_keeps_axes_coordinates_names_and_attributes(
    forecaster: Forecaster, fields: np.ndarray, by_hand: ByHand
) -> None:
    given = labelled(fields)
    answer = forecaster.predict(given, [0.05, 0.1])
    assert isinstance(answer, xr.DataArray)
    assert answer.dims == ("member", "lead_time", "channel", "y", "x")
    assert (answer.name, answer.attrs) == ("state", {"source": "a test"})
    for lead in (0.05, 0.1):
        np.testing.assert_allclose(answer.sel(lead_time=lead), by_hand(fields, lead), **CLOSE)
    for name in given.coords:
        xr.testing.assert_identical(given[name].variable, answer[name].variable)
    assert answer["lead_time"].attrs["units"] == "1"
    single = forecaster.predict(given, 0.1)
    assert single.dims == given.dims
    assert float(single["lead_time"]) == 0.1
    # fields are found by name: another order, and axes in another order
    shuffled = given.isel(channel=[2, 0, 3, 1]).transpose("x", "channel", "y", "member")
    other = forecaster.predict(shuffled, 0.1)
    assert list(other["channel"].values) == [FIELDS[n] for n in (2, 0, 3, 1)]
    xr.testing.assert_allclose(other.sel(channel=list(FIELDS)).transpose(*single.dims), single)


def test_a_dataset_has_a_variable_for_each_field(
    forecaster: Forecaster, fields: np.ndarray, by_hand: ByHand
) -> None:
    given = labelled(fields).to_dataset("channel").assign(other=("member", [1.0, 2.0, 3.0]))
    given["pressure"].attrs["units"] = "Pa"
    given["density"] = given["density"].astype(np.float64)
    answer = forecaster.predict(given, LEAD)
    assert isinstance(answer, xr.Dataset)
    assert set(answer.data_vars) == set(FIELDS)
    expected = by_hand(fields, LEAD)
    for channel, name in enumerate(FIELDS):
        assert answer[name].dims == ("member", "y", "x")
        np.testing.assert_allclose(answer[name], expected[:, channel], **CLOSE)
    assert answer["pressure"].attrs["units"] == "Pa"
    assert answer.attrs == given.attrs
    # a field that is the same for all members has no such axis
    static = given.assign(density=given["density"].isel(member=0, drop=True))
    assert forecaster.predict(static, LEAD)["density"].dims == ("member", "y", "x")


def test_absent_and_misordered_fields_are_named(forecaster: Forecaster, fields: np.ndarray) -> None:
    without = labelled(fields).to_dataset("channel").drop_vars("pressure")
    with pytest.raises(ValueError, match=r"the data lack pressure: .*absent=\['pressure'\]"):
        forecaster.predict(without, LEAD)
    answer = forecaster.predict(without, LEAD, absent=["pressure"])
    assert set(answer.data_vars) == set(FIELDS) - {"pressure"}
    # absent fields enter as in training, 0 after normalisation: their mean
    mean = forecaster.normalization.mean[3]
    filled = forecaster.predict(without.assign(pressure=without["density"] * 0 + mean), LEAD)
    xr.testing.assert_allclose(answer, filled.drop_vars("pressure"))
    # also if the absent field is the first, so that others stand at other places
    given = labelled(fields)
    first = forecaster.predict(given.isel(channel=[1, 2, 3]), LEAD, absent=["density"])
    whole = forecaster.predict(fields, LEAD, absent=["density"])
    np.testing.assert_allclose(first, whole[:, 1:], **CLOSE)
    with pytest.raises(ValueError, match="Rename presure to pressure"):
        forecaster.predict(without.assign(presure=without["density"]), LEAD)
    order = [3, 1, 0, 2]
    names = [FIELDS[n] for n in order]
    array = forecaster.predict(fields[:, order], LEAD, names=names)
    np.testing.assert_allclose(array, forecaster.predict(fields, LEAD)[:, order], **CLOSE)
    with pytest.raises(
        ValueError, match="pressur is none of the model's fields; pressure is missing"
    ):
        forecaster.predict(fields, LEAD, names=[*FIELDS[:3], "pressur"])
    three = forecaster.predict(fields[:, :3], LEAD, ["pressure"], names=FIELDS[:3])
    np.testing.assert_allclose(three[:, 1], answer["velocity-x"], **CLOSE)
    with pytest.raises(ValueError, match=r"expected \[batch, 4 channels, y, x\]"):
        forecaster.predict(fields[:, :3], LEAD)
    with pytest.warns(ForecastWarning, match="names no fields, so they are taken in the model's"):
        forecaster.predict(labelled(fields).drop_vars("channel"), LEAD)


def test_values_that_are_no_numbers_are_rejected_with_their_place(
    forecaster: Forecaster, fields: np.ndarray
) -> None:
    broken = fields.copy()
    broken[2, 1, 5, 7:9] = np.nan
    with pytest.raises(ValueError, match=r"velocity-x has 2 values .* first at \[2, 5, 7\]"):
        forecaster.predict(broken, LEAD)
    broken[2, 1, 5, 7:9] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        forecaster.rollout(labelled(broken), 2)
    for empty in (fields[:0], labelled(fields)[:0], fields[..., :0]):
        with pytest.raises(ValueError, match="there is nothing to forecast from"):
            forecaster.predict(empty, LEAD)
    for given in (fields, labelled(fields)):
        with pytest.raises(ValueError, match=r"expected a list: absent=\['pressure'\]"):
            forecaster.predict(given, LEAD, "pressure")
    assert forecaster.predict(broken, LEAD, ["velocity-x"])[:, 1].size  # absent: never looked at
    with pytest.warns(ForecastWarning, match=r"density \(.*Check the units"):
        forecaster.predict(fields * np.array([1e4, 1, 1, 1])[:, None, None], LEAD)


def test_leads_that_cannot_be_meant_are_rejected_and_unseen_ones_warned_of(
    forecaster: Forecaster, fields: np.ndarray
) -> None:
    for wrong in (-0.05, [0.05, -0.1], float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a time ahead"):
            forecaster.predict(fields, wrong)
    for lead in (np.timedelta64(1, "h"), True, "0.1"):
        with pytest.raises(ValueError, match="expected a number, or several, in the unit of time"):
            forecaster.predict(fields, lead)
    with pytest.raises(ValueError, match="lead_time 'soon': expected a number"):
        forecaster.predict(fields, "soon")
    with pytest.warns(
        ForecastWarning, match="never trained for the lead time 0.3: training had 0, "
    ):
        forecaster.predict(fields, 0.3)
    with pytest.warns(ForecastWarning, match="0.075") as told:
        forecaster.predict(fields, 0.075)
    assert told[0].filename == __file__  # the line to look at is the user's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forecaster.predict(fields, np.float32(0.15))  # a sum of roundings, and still the same
    with pytest.warns(ForecastWarning, match="a grid of 8 x 8 points, .* trained on 16 x 16"):
        forecaster.predict(fields[:, :, :8, :8], LEAD)


def test_units_that_differ_from_the_training_s_are_warned_of(
    exported: Path, fields: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "with-units")
    path = tmp_path / "with-units" / "forecaster.json"
    path.write_text(path.read_text().replace('"pressure": "1"', '"pressure": "hPa"'))
    forecaster = Forecaster.load(tmp_path / "with-units")
    given = labelled(fields).to_dataset("channel")
    assert forecaster.predict(given, LEAD)["pressure"].attrs["units"] == "hPa"
    given["pressure"].attrs["units"] = "Pa"
    with pytest.warns(ForecastWarning, match="pressure is in Pa, but the model was trained on hPa"):
        forecaster.predict(given, LEAD)


def test_a_rollout_feeds_forecasts_back(
    forecaster: Forecaster, fields: np.ndarray, by_hand: ByHand
) -> None:
    expected, state = [], fields
    for _ in range(3):
        state = by_hand(state, 0.1)
        expected.append(state)
    answer = forecaster.rollout(fields, 3, 0.1)
    np.testing.assert_allclose(answer, np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forecaster.rollout(fields[0], 3, 0.1), answer[0], **CLOSE)
    named = forecaster.rollout(labelled(fields), 3, 0.1)
    assert named.dims == ("member", "lead_time", "channel", "y", "x")
    np.testing.assert_allclose(named["lead_time"], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(named, answer, **CLOSE)
    for steps in (0, 1.5):
        with pytest.raises(ValueError, match="a whole number of steps, at least one"):
            forecaster.rollout(fields, steps, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"an axis 'lead_time', .* such as .isel\(lead_time=-1\)"):
        forecaster.predict(named, 0.1)
    again = forecaster.predict(named.isel(lead_time=-1), 0.1)
    np.testing.assert_allclose(again, forecaster.predict(answer[:, -1], 0.1), **CLOSE)


def test_offsets_of_the_training_are_taken_off_and_added_again(
    exported: Path, fields: np.ndarray, by_hand: ByHand, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "shifted")
    path = tmp_path / "shifted" / "forecaster.json"
    path.write_text(path.read_text().replace('"offset": {}', '"offset": {"pressure": 0.5}'))
    shift = np.array([0, 0, 0, 0.5], np.float32)[:, None, None]
    answer = Forecaster.load(tmp_path / "shifted").predict(fields, LEAD)
    np.testing.assert_allclose(answer, by_hand(fields - shift, LEAD) + shift, **CLOSE)
    path.write_text(path.read_text().replace('"pressure": 0.5', '"pressure": 0.75', 1))
    different = Forecaster.load(tmp_path / "shifted")
    with pytest.warns(ForecastWarning, match="depending on the dataset"):
        different.predict(fields, LEAD)
    told = different.predict(fields, LEAD, offset={"pressure": 0.5})
    np.testing.assert_array_equal(told, answer)


def test_models_are_found_in_a_directory_on_the_hub_and_in_mlflow(
    exported: Path,
    trained: RunDirectory,
    fields: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = Forecaster.load(exported).predict(fields, LEAD)
    # the hub's cache, as huggingface_hub documents its layout; no network is asked
    cached = tmp_path / "hub" / "models--lab--waves"
    shutil.copytree(exported, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    np.testing.assert_array_equal(Forecaster.load("lab/waves").predict(fields, LEAD), expected)
    with pytest.raises(ValueError, match="no directory lab/storms here, and the Hugging Face hub"):
        Forecaster.load("lab/storms")

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as started:
        pass
    job = trained.job()
    recorded = RecordedRun(uri, started.info.run_id)
    register_model(job, recorded, Forecaster.load(exported), (16, 16))
    for name in ("models:/waves", "models:/waves/1", "models:/waves@newest"):
        found = Forecaster.load(name, tracking_uri=uri)
        np.testing.assert_array_equal(found.predict(fields, LEAD), expected)
    with pytest.raises(ValueError, match="models:/storms"):
        Forecaster.load("models:/storms", tracking_uri=uri)

    with pytest.raises(ValueError, match="`pelagos export waves DIR` makes a model of it"):
        Forecaster.load(trained.path)
    with pytest.raises(ValueError, match="there is no model ./nowhere: expected a directory"):
        Forecaster.load("./nowhere")
    shutil.copytree(exported, tmp_path / "published", ignore=shutil.ignore_patterns("forecaster*"))
    with pytest.raises(ValueError, match="without its fields and normalisation"):
        Forecaster.load(tmp_path / "published")
