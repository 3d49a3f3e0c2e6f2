"""Credentials that end while a dataset is open: made, and ended, on a real S3 server."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.session
import numpy as np
import pytest

from pelagos.data_pipelines.store import (
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
)

pytestmark = pytest.mark.s3

SPEC = DatasetSpec(
    name="small",
    equation="none",
    fields=(Field("density", "density"),),
    num_trajectories=4,
    num_frames=4,
    grid_shape=(16, 16),
    frame_interval=0.05,
    domain_extent=(1.0, 1.0),
    boundary_conditions={},
    splits={"train": (0, 4)},
)
DATA = np.random.default_rng(0).normal(size=SPEC.shape).astype(np.float32)


class LabKeys:
    """Pairs of keys of a user of the real server, handed out by a `credential_process`."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server, self.name = server, f"lab-{uuid.uuid4().hex[:8]}"
        self.file = folder / "keys.json"
        self.iam = self._client("iam", server.access_key, server.secret_key)
        self.iam.create_user(UserName=self.name)
        allowed = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        self.iam.put_user_policy(UserName=self.name, PolicyName="all", PolicyDocument=policy)
        self.key = ""
        (folder / "config").write_text(f"[profile lab]\ncredential_process = cat {self.file}\n")

    def issue(self) -> None:
        """Make a new pair, which the process gives from now on."""
        pair = self.iam.create_access_key(UserName=self.name)["AccessKey"]
        self.key, secret = pair["AccessKeyId"], pair["SecretAccessKey"]
        self._wait(self.key, secret, True)
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        values = {"AccessKeyId": self.key, "SecretAccessKey": secret, "Expiration": soon}
        self.file.write_text(json.dumps({"Version": 1, **values}))

    def end(self, key: str) -> None:
        """The server refuses a pair from now on."""
        self.iam.delete_access_key(UserName=self.name, AccessKeyId=key)
        self._wait(key, "any", False)

    def _wait(self, key: str, secret: str, wanted: bool) -> None:
        """Until the server's gateway has heard of a pair, or of its end."""
        client = self._client("s3", key, secret)
        for _ in range(200):
            try:
                client.list_objects_v2(Bucket=self.server.bucket, MaxKeys=1)
                code = ""
            except client.exceptions.ClientError as error:
                code = error.response["Error"]["Code"]
            if (code == "") if wanted else (code == "InvalidAccessKeyId"):
                return
            time.sleep(0.1)
        raise AssertionError(f"the server answers {code or 'well'}")

    def _client(self, service: str, key: str, secret: str) -> Any:
        return botocore.session.Session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=self.server.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )


@pytest.mark.parametrize("backend", ["obstore", "fsspec"])
def test_an_open_dataset_outlives_its_credentials(
    backend: str, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = s3_server.new_uri("/lab.zarr")
    writer = create_dataset(written, SPEC, storage_options=s3_server.storage_options)
    writer.write_shard(0, DATA)
    writer.finalize()
    keys = LabKeys(s3_server, tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    keys.issue()
    dataset = open_dataset(written, {"pelagos": {"backend": backend}})
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])
    first = keys.key
    keys.issue()
    keys.end(first)
    with ThreadPoolExecutor(4) as pool:  # all of them meet the end at once
        found = list(pool.map(lambda row: dataset.window(row, 0, 4), (0, 1, 2, 3)))
    np.testing.assert_array_equal(np.stack(found), DATA)
    keys.end(keys.key)  # and nothing in its place
    with pytest.raises(DatasetError, match="access refused") as caught:
        dataset.window(1, 1, 2)
    message = str(caught.value)
    for part in (s3_server.bucket, "data/c/0/0/0/0/0", "trajectory 1", "frames 1, 2", "credential"):
        assert part in message
    assert keys.key not in message
