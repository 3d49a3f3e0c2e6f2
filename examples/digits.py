"""Real images as a dataset: scikit-learn's handwritten digits, 8 x 8, with class and a map of the ink.

python examples/digits.py vision/digits.zarr
"""

import itertools
import sys

import numpy as np
from sklearn.datasets import load_digits

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset

NUM_TRAINED, NUM_VALIDATED, NUM_TESTED = 1297, 200, 300
BRIGHT = 6.0  # of 16: what counts as ink


def write_digits(uri: str) -> None:
    """Write images as trajectories of one frame, `grey` and `ink`; the class is `label`."""
    found = load_digits()
    images = found.images.astype(np.float32)
    ends = np.cumsum([0, NUM_TRAINED, NUM_VALIDATED, NUM_TESTED]).tolist()
    spec = DatasetSpec(
        name="digits",
        equation="none: images",
        fields=(Field("grey", "grey"), Field("ink", "ink")),
        num_trajectories=len(images),
        num_frames=1,
        grid_shape=(8, 8),
        frame_interval=1.0,
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "open", "y": "open"},
        parameter_names=("label",),
        splits=dict(zip(("train", "validation", "test"), itertools.pairwise(ends), strict=True)),
        trajectories_per_shard=100,
    )
    writer = create_dataset(uri, spec)
    data = np.stack([images, (images > BRIGHT).astype(np.float32)], axis=1)[:, None]
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        part = slice(rows.start, rows.stop)
        writer.write_shard(shard, data[part], {"label": found.target[part]})
    writer.finalize()


if __name__ == "__main__":
    write_digits(sys.argv[1])
