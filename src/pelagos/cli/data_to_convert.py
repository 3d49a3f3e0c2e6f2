"""What to do with data that are no dataset yet."""

from pathlib import Path

from pelagos.data_pipelines.store import DatasetError


def as_no_dataset_yet(uri: str, error: DatasetError) -> DatasetError:
    """Return an error that names `pelagos convert` if there are other files, else `error`."""
    path = Path(uri).expanduser().absolute()
    is_begun = any((path / name).exists() for name in ("zarr.json", ".zgroup", "manifest.json"))
    if is_begun or not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        return error
    from pelagos.data_pipelines.convert.options import ConvertOptions
    from pelagos.data_pipelines.convert.registry import open_source
    from pelagos.data_pipelines.convert.source import SourceError

    name = f"{path.stem}.zarr"
    try:
        found = open_source(str(path), ConvertOptions()).format
    except (SourceError, DatasetError, OSError, ImportError) as why:
        return DatasetError(f"{uri} is no dataset yet, and cannot be converted as it is: {why}")
    return DatasetError(
        f"{uri} is no dataset yet. Its format is {found}: `pelagos convert {uri} {name}` makes one, and "
        f"with --dry-run shows its fields, shape and splits first"
    )
