"""Building networks and objectives from options that somebody else wrote, within bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sized

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

# In addition to the keys of every weights file: keys that it may lack.
SPARE_PARAMETERS = 1000


@contextlib.contextmanager
def buildable(what: str, weights: Sized | None = None) -> Iterator[None]:
    """Turn whatever goes wrong in building `what` into a ValueError.

    Args:
        weights: those a network is to hold; one with many more parameters is not built to its end,
            which options such as a thousand million blocks would put off for hours.

    Raises:
        ValueError: the options fit nothing that can be built.
    """
    most = None if weights is None else len(weights) + SPARE_PARAMETERS
    try:
        with _at_most(most):
            yield
    except ValueError:
        raise
    except Exception as error:  # options are any JSON, and each network uses its own in its own way
        raise ValueError(
            f"cannot build {what} with the options in its description: {type(error).__name__}: "
            f"{error}"
        ) from error


@contextlib.contextmanager
def _at_most(num_parameters: int | None) -> Iterator[None]:
    if num_parameters is None:
        yield
        return
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 1
        if made > num_parameters:
            raise ValueError(
                f"the description is of a network with more than {num_parameters:,} parameter "
                "tensors, far more than the weights have"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
