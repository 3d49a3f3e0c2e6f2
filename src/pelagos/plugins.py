"""Parts of a user's own: importing the modules that have them, and the calls that register them.

A plugin is a Python module. It is imported first wherever a job runs: by the driver, by each worker, by
`evaluate`, `export` and a served model. Importing it calls the functions below, one for each kind of
part; `docs/extending.md` has an example of each.

    from pelagos import plugins

    plugins.register_objective("residual", Residual)

Only the user decides which modules are imported: `plugins`, `model.name` and `callbacks` of a job
file, `--plugin`, PELAGOS_PLUGINS, and the entry points `pelagos.plugins` of installed packages. Data
from others (records, checkpoints, model directories) imports nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pelagos.infra.permanent_error import PermanentError
from pelagos.registry import own_line, registering

if TYPE_CHECKING:
    from pelagos.data_pipelines.convert.formats import Format
    from pelagos.data_pipelines.foreign.opening import Opener
    from pelagos.data_pipelines.generate.family import Family as ProblemFamily
    from pelagos.evaluation.measures.metrics import Metric
    from pelagos.models.family import Family as ModelFamily
    from pelagos.models.losses import Loss
    from pelagos.platform.callbacks import Callback
    from pelagos.platform.optimization.optimizer_kinds import OptimizerKind
    from pelagos.platform.optimization.schedules import Curve

AnyJob = TypeVar("AnyJob")
ENTRY_POINTS = "pelagos.plugins"
VARIABLE = "PELAGOS_PLUGINS"
_sealed = False
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class PluginError(PermanentError, ValueError):
    """A plugin that cannot be imported: names it, the error and the last line of the user's own."""


# -- one call for each kind of part -----------------------------------------------------------------


def register_model_family(family: ModelFamily) -> None:
    """Add a family of networks; its models are called `NAME-SIZE`."""
    from pelagos.models.family import Family
    from pelagos.models.registry import FAMILIES

    _require(isinstance(family, Family), "a model family", family, "a models.family.Family")
    FAMILIES.register(family.name, family)


def register_objective(name: str, objective: type[Any]) -> None:
    """Add an objective: a dataclass that is one (`pelagos.models.objectives.Objective`)."""
    from pelagos.models.objectives import OBJECTIVES

    is_class = isinstance(objective, type) and dataclasses.is_dataclass(objective)
    _require(is_class, f"objective {name!r}", objective, "a class that is a dataclass")
    OBJECTIVES.register(name, objective)


def register_loss(name: str, loss: Loss) -> None:
    """Add a loss that `objective.config.loss` can name."""
    from pelagos.models.losses import LOSSES

    has_both = all(callable(getattr(loss, method, None)) for method in ("magnitudes", "errors"))
    is_loss = has_both and not isinstance(loss, type)
    _require(is_loss, f"loss {name!r}", loss, "an object with the methods of models.losses.Loss")
    LOSSES.register(name, loss)


def register_metric(name: str, metric: Metric) -> None:
    """Add an error that evaluations report: `(forecast, truth, num_dimensions)` to a tensor."""
    from pelagos.evaluation.measures.metrics import METRICS

    _require(callable(metric), f"metric {name!r}", metric, "a function")
    METRICS.register(name, metric)


def register_optimizer(name: str, optimizer: OptimizerKind) -> None:
    """Add an optimizer that `optimizer.name` can name."""
    from pelagos.platform.optimization.optimizer_kinds import OPTIMIZERS, OptimizerKind

    is_kind = isinstance(optimizer, OptimizerKind)
    _require(is_kind, f"optimizer {name!r}", optimizer, "an optimizer_kinds.OptimizerKind")
    OPTIMIZERS.register(name, optimizer)


def register_schedule(name: str, curve: Curve) -> None:
    """Add a curve of the learning rate that `schedule.name` can name."""
    from pelagos.platform.optimization.schedules import SCHEDULES

    _require(callable(curve), f"schedule {name!r}", curve, "a function")
    SCHEDULES.register(name, curve)


def register_opener(scheme: str, opener: Opener) -> None:
    """Let datasets whose uri begins with `scheme://` be opened by a function."""
    from pelagos.data_pipelines.foreign.opening import OPENERS

    _require(callable(opener), f"opener of {scheme!r}", opener, "a function or class")
    OPENERS.register(scheme, opener)


def register_format(found: Format) -> None:
    """Add a file format that `pelagos convert` reads."""
    from pelagos.data_pipelines.convert.formats import Format
    from pelagos.data_pipelines.convert.registry import FORMATS

    _require(isinstance(found, Format), "a file format", found, "a convert.formats.Format")
    FORMATS.register(found.name, found)


def register_problem_family(family: ProblemFamily) -> None:
    """Add a family of problems that `pelagos generate` simulates."""
    from pelagos.data_pipelines.generate.families import FAMILIES
    from pelagos.data_pipelines.generate.family import Family

    _require(isinstance(family, Family), "a family of problems", family, "a generate.family.Family")
    FAMILIES.register(family.name, family)


def register_callback(name: str, make: Callable[..., Callback]) -> None:
    """Add a callback that `callbacks` can name; it is made with the entry's `config`."""
    from pelagos.platform.callbacks import CALLBACKS

    _require(callable(make), f"callback {name!r}", make, "a class or function that makes one")
    CALLBACKS.register(name, make)


def _require(is_one: bool, what: str, got: object, expected: str) -> None:
    """Reject at its registration what would fail in a worker."""
    if not is_one:
        raise TypeError(f"{what}: expected {expected}, got {got!r}")


# -- importing ----------------------------------------------------------------------------------------


def load(modules: Iterable[str]) -> None:
    """Import modules, each once, also from the current directory; child processes will too.

    Raises:
        PluginError: one cannot be imported.
    """
    names = [name for name in dict.fromkeys(modules) if name]
    for name in names:
        _load(name)
    if names:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*named_in_environment(), *names]))


def load_for(job: Any) -> None:
    """Import the plugins and the modules of classes that the user's own job names."""
    load([*wanted_by(job), *named_in_environment()])


def with_named(job: AnyJob) -> AnyJob:
    """Return a job of the user's own whose `plugins` also list those of `--plugin` and the environment.

    So a run that was started with them resumes, is evaluated and exported without naming them again.
    """
    named = named_in_environment()
    own = getattr(job, "plugins", None)
    if own is None or not set(named) - set(own):
        return job
    both = tuple(dict.fromkeys([*own, *named]))
    changed: AnyJob = job.model_copy(update={"plugins": both})  # type: ignore[attr-defined]
    return changed


def load_installed() -> None:
    """Import the plugins of installed packages, and those that PELAGOS_PLUGINS names."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _load(entry.module)
    load(named_in_environment())


def named_in_environment() -> list[str]:
    """Return the modules that PELAGOS_PLUGINS names, separated by commas."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def wanted_by(job: Any) -> list[str]:
    """Return the modules that a job names: `plugins`, and those of classes (`module:Class`)."""
    watching = [callback.name for callback in getattr(job, "callbacks", ())]
    return [*wanted_by_model(job), *(n.partition(":")[0] for n in watching if ":" in n)]


def wanted_by_model(job: Any) -> list[str]:
    """Return the modules that a trained model of a job needs: all but those of callbacks' classes."""
    model = getattr(job, "model", None)
    own = [model.name.partition(":")[0]] if model is not None and ":" in model.name else []
    return list(dict.fromkeys([*getattr(job, "plugins", ()), *own]))


def require_loaded(modules: Iterable[str], told_by: str) -> None:
    """Raise unless modules that somebody's file names were imported already.

    Raises:
        PluginError: names them, and how to say that they are to be imported.
    """
    missing = [name for name in dict.fromkeys(modules) if name not in sys.modules]
    if missing:
        options = " ".join(f"--plugin {name}" for name in missing)
        raise PluginError(
            f"{told_by} needs {', '.join(missing)}, which was not imported because others may have "
            f"written that file. If you trust it, add {options}, or name it in the job's `plugins`"
        )


def seal() -> None:
    """Import nothing more in this process: from here on it may read files written by others."""
    global _sealed
    _sealed = True


def source_of(module: str) -> Path:
    """Return the file or folder of an imported module's top-level package."""
    top = sys.modules[module.partition(".")[0]]
    file = getattr(top, "__file__", None)
    if file is None or Path(file).name == "__init__.py":
        return Path(next(iter(top.__path__)))
    return Path(file)


def _load(name: str) -> None:
    if name in sys.modules:
        return
    if _sealed:
        require_loaded([name], "what is read")
    if not _MODULE.fullmatch(name):
        raise PluginError(
            f"plugin {name!r} is not a module name such as my_lab.networks (no path, no .py)"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        with registering(name):
            importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module that exits must not end the verb quietly
        raise PluginError(_explained(name, error)) from error


def _explained(name: str, error: BaseException) -> str:
    """Report the failure and its place: the last line of the traceback that is the user's own."""
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if absent and f"{name}.".startswith(f"{absent}."):
        return (
            f"plugin {name}: module {absent} does not exist. Pelagos looks for it in the current "
            f"directory ({os.getcwd()}) and where Python finds packages. A submitted job takes it "
            f"along with --include {absent.partition('.')[0]}"
        )
    place = own_line(error)
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}, line {error.lineno})"
    return f"plugin {name} cannot be imported: {type(error).__name__}: {error}{place}"
