"""The training stream of a job, and its validation samples."""

from collections.abc import Callable, Iterator
from typing import Any

from pelagos.data_pipelines.streaming.batch import Batch
from pelagos.data_pipelines.streaming.loader import StreamLoader, load_batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.sampler import Sampler
from pelagos.jobs.training.mixtures import unique_names
from pelagos.platform.config.checks import micro_batch_size
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.protocols import Stream


class MixtureStreams:
    """The training stream and the fixed validation samples of a job's mixture."""

    def __init__(
        self, job: TrainingJob, mixture: Mixture, make_validation: Callable[[], Sampler]
    ) -> None:
        """`make_validation` gives the order of the validation samples; called when it is needed."""
        self.job, self.mixture = job, mixture
        self.sampler = Sampler(
            self.mixture,
            job.seed,
            job.data.global_batch_size,
            job.data.run_length,
            job.data.order_version,
        )
        self.dataset_names = unique_names([e.dataset.spec.name for e in self.mixture.entries])
        self.epoch_samples = self.mixture.num_samples
        self._make_validation = make_validation

    def open(self, start_step: int, data_rank: int, data_world_size: int) -> Stream:
        return StreamLoader(
            self.mixture,
            self.sampler,
            global_batch_size=self.job.data.global_batch_size,
            rank=data_rank,
            world_size=data_world_size,
            start_step=start_step,
            num_threads=self.job.data.num_threads,
            prefetch_steps=self.job.data.prefetch_steps,
            stop_step=self.job.schedule.total_steps,
        )

    def validation(self, data_rank: int, data_world_size: int) -> Iterator[tuple[Batch, int]]:
        """Return one data rank's share: every `data_world_size`-th sample of one fixed list.

        Where the list does not divide, a rank repeats its last sample, which then does not count.
        Samples of grids of other shapes come in batches of their own, as many on every rank.
        """
        order = self._make_validation()
        drawn = order.samples(0, self.job.validation.num_samples)
        mixture, size = order.mixture, micro_batch_size(self.job)
        for shape in mixture.distinct_shapes:
            whole = [s for s in drawn if mixture.grid_shapes[s.dataset] == shape]
            own = whole[data_rank::data_world_size]
            missing = -(-len(whole) // data_world_size) - len(own)
            samples = [*own, *(own or whole)[-1:] * missing]
            for start in range(0, len(samples), size):
                batch = load_batch(mixture, samples[start : start + size])
                yield batch, max(0, min(size, len(own) - start))

    def state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def check_state(self, state: dict[str, Any]) -> None:
        self.sampler.check_state(state)
