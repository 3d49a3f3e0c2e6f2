"""Addresses that can never be read, told before the first request."""

from __future__ import annotations

REFERENCE_SCHEME = "reference"


def reject_references(uri: str, error: type[ValueError]) -> None:
    """Raise `error` for kerchunk's references, which are a view of other files.

    Reading through them would have none of the checks that the files themselves get: a reference to
    bytes that are gone reads as the fill value.
    """
    if uri.partition("://")[0] == REFERENCE_SCHEME:
        raise error(
            f"{uri}: kerchunk references are not read. Name the files that they refer to, or write "
            f"their arrays as one Zarr first: xarray.open_dataset(REFERENCES, engine='kerchunk')"
            f".to_zarr('NEW.zarr')"
        )


def reject_empty_segments(uri: str, prefix: str, error: type[ValueError]) -> None:
    """Raise `error` for `bucket//name` and `bucket/a//b`.

    S3 keeps such keys apart from those with one slash. obstore reads the object of the other name
    for the first, and rejects the second whenever it is asked.
    """
    if "" in prefix.split("/")[1:]:
        raise error(
            f"{uri} has an empty part between two slashes, which is another key than with one "
            f"slash, and which obstore cannot read. Write one slash, or, if the object is really "
            f"named so, read it through fsspec (storage: backend: fsspec)"
        )
