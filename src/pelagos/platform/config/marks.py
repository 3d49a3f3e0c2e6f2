"""The meaning of a training job's keys: marks in the annotation of each field.

    num_threads: Annotated[PositiveInt, Meaning.HOW] = Field(4, description="…")

A mark on a section holds for every key below it. A key below may have a meaning of its own instead;
traits add up. A key without a meaning decides the steps, which is the careful choice: a resume then
rejects a change, and a sweep trains anew. `meanings.py` reads the marks.
"""

from dataclasses import dataclass
from enum import Enum


class Meaning(Enum):
    """The effect of changing a key's value."""

    STEPS = "steps"
    """Which steps are taken, or what is measured of them."""
    HOW = "how"
    """How the same steps are computed: the losses are the same, up to the order of sums."""
    PLACE = "place"
    """Where something is."""
    RECORD = "record"
    """What is written down of the steps, how often, and who watches them."""


class Trait(Enum):
    """Further properties of a key that some readers need to know."""

    NETWORK = "network"
    """Belongs to the function that is computed of one sample, and so to its number of operations."""
    INPUTS = "inputs"
    """Says which data are trained on and which weights are the first ones, or how to reach them."""
    UPDATES = "updates"
    """Belongs to how weights move: another value may take over at a checkpoint, as a branch."""
    POPULATION = "population"
    """A number that a population may move while its members train: neither which weights there are,
    nor what they see, nor what the validation loss measures."""
    ACCURACY = "accuracy"
    """How, but with visibly other numbers (half precision, a loss per micro-batch): a resume may
    change it; a sweep tells such trials apart."""
    HOME = "home"
    """A place, but that of the run itself: a resume, which looks for the run there, cannot move it."""
    RESUMABLE = "resumable"
    """Decides steps, and yet a resume may say it; the reason stands next to the field."""


@dataclass(frozen=True)
class Sets:
    """Marks a key of a sweep that sets a key of its jobs, or a section, and names that."""

    key: str
