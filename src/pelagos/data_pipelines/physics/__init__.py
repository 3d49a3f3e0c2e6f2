"""Which equation a dataset solves, and how well frames obey it."""

from pelagos.data_pipelines.physics.binding import DatasetPhysics, NoPhysics, dataset_physics
from pelagos.data_pipelines.physics.registry import EQUATIONS

__all__ = ["EQUATIONS", "DatasetPhysics", "NoPhysics", "dataset_physics"]
