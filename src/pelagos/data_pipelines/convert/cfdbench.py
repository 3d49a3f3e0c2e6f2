"""CFDBench: a folder per case with `u.npy` and `v.npy` `[t, y, x]` and the case's numbers.

Facts of the format: `src/dataset/{cavity,tube,dam,cylinder}.py` and the README of
https://github.com/luo-yining/CFDBench (arXiv 2310.05963): `PROBLEM/{prop,bc,geo}/case0000/` with
`u.npy`, `v.npy`, `case.json`; frames 0.1 s apart; cases differ in length. Its loader shuffles the
cases with Python's generator of seed 0 and takes 80 % / 10 % / 10 %; the walls that it adds around
the stored values are not in the files and are not added here.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.agreement import Agreement
from pelagos.data_pipelines.convert.formats import Format, named, natural
from pelagos.data_pipelines.convert.npz import mapped_npy
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.remote import is_remote

FRAME_INTERVAL = 0.1
SUBSETS = ("prop", "bc", "geo")
_FIELDS = ("velocity-x", "velocity-y")


def _cases(path: str) -> list[Path]:
    """Folders of cases, in the order of the published loader before it shuffles."""
    if is_remote(path) or not Path(path).is_dir():
        return []
    place = Path(path)
    subsets = [place / name for name in SUBSETS if (place / name).is_dir()] or [place]
    return [
        case
        for subset in subsets
        for case in sorted(subset.glob("case*"), key=lambda p: natural(p.name))
        if case.is_dir()
    ]


def _matches(path: str, options: ConvertOptions) -> bool:
    cases = _cases(path)
    return bool(cases) and (cases[0] / "case.json").is_file() and (cases[0] / "u.npy").is_file()


def _read(path: str, options: ConvertOptions) -> Source:
    cases = _cases(path)
    if not cases:
        raise SourceError(
            f"{path} holds no cases: expected folders case0000, case0001, …, or prop, bc and geo "
            "with such folders, each with u.npy, v.npy and case.json"
        )
    numbers = {case: _numbers(case) for case in cases}
    shapes = {case: _shape(case) for case in cases}
    grid = shapes[cases[0]][1:]
    agreement = Agreement()
    for case, shape in shapes.items():
        agreement.require("the grid (y, x)", str(case), shape[1:])
        size = (numbers[case].get("height"), numbers[case].get("width"))
        consequence = "they stay parameters of the trajectory, and the domain is stored as 1 x 1"
        agreement.remark("the size (height, width)", str(case), size, consequence)
    random.Random(0).shuffle(cases)
    num_frames = options.num_frames or min(shape[0] for shape in shapes.values())
    all_names = dict.fromkeys(name for case in cases for name in numbers[case])
    names = [n for n in all_names if all(n in numbers[case] for case in cases)]
    if missing := [n for n in all_names if n not in names]:
        agreement.notes.append(
            f"left out, because some cases lack them: parameters {', '.join(missing)}"
        )
    held_out = round(len(cases) * 0.1)
    num_train = round(len(cases) * 0.8)
    by_split = {
        "train": cases[:num_train],
        "validation": cases[num_train : num_train + held_out],
        "test": cases[num_train + held_out :],
    }
    splits = {
        name: tuple(
            part
            for case in chosen
            for part in _windows(
                case, shapes[case][0], num_frames, {n: numbers[case][n] for n in names}
            )
        )
        for name, chosen in by_split.items()
    }
    left_out = sum(shape[0] % num_frames for shape in shapes.values())
    notes = (
        f"cases have {min(s[0] for s in shapes.values())} to {max(s[0] for s in shapes.values())} "
        f"frames. Each is cut into trajectories of {num_frames} frames (--num-frames), and all "
        f"trajectories of a case go into one split. {left_out} frames at the ends of cases are left "
        "out",
        "the walls that the published loader adds around the values are not added",
        *agreement.notes,
    )
    return Source(
        format="cfdbench",
        name=named(path),
        equation="incompressible Navier-Stokes (CFDBench)",
        fields=tuple(Field(name, name, "m/s") for name in _FIELDS),
        splits={name: parts for name, parts in splits.items() if parts},
        num_frames=num_frames,
        grid_shape=grid,
        frame_interval=FRAME_INTERVAL,
        domain_extent=_extent(numbers),
        notes=notes,
        details={"num_cases": len(cases), "shuffle_seed": 0},
    )


def _numbers(case: Path) -> dict[str, float]:
    file = case / "case.json"
    try:
        values: dict[str, Any] = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {file}: {error}") from error
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float)}


def _shape(case: Path) -> tuple[int, ...]:
    """`(t, y, x)` of both components."""
    shapes = []
    for name in ("u.npy", "v.npy"):
        try:
            shapes.append(mapped_npy(case / name).shape)
        except (OSError, ValueError) as error:
            raise SourceError(f"cannot read {case / name}: {error}") from error
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise SourceError(
            f"{case}: u.npy has shape {shapes[0]} and v.npy {shapes[1]}; expected the same shape "
            "[t, y, x]"
        )
    found: tuple[int, ...] = shapes[0]
    return found


def _windows(case: Path, length: int, num_frames: int, numbers: dict[str, float]) -> list[Part]:
    arrays = tuple(
        StoredArray("npy", str(case / name), "", "tyx", channel)
        for channel, name in enumerate(("u.npy", "v.npy"))
    )
    starts = range(0, length - num_frames + 1, num_frames)
    return [Part(arrays, first_frame=start, parameters=numbers) for start in starts]


def _extent(numbers: dict[Path, dict[str, float]]) -> tuple[float, float] | None:
    """The domain where it is the same in all cases; the cases' own sizes are parameters."""
    found = {(n.get("height"), n.get("width")) for n in numbers.values()}
    height, width = found.pop()
    return None if found or height is None or width is None else (height, width)


FORMAT = Format(
    "cfdbench",
    "CFDBench: a folder per case with u.npy, v.npy, case.json",
    "a problem's folder (with prop, bc, geo) or one of these",
    _matches,
    _read,
)
