"""Addresses that can never be read, told before the first request."""

from __future__ import annotations

REFERENCE_SCHEME = "reference"
BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs")


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


def reject_empty_parts(uri: str, error: type[ValueError], backend: str = "auto") -> None:
    """Raise `error` for `s3://bucket//name` and `s3://bucket/a//b`.

    S3 keeps such keys apart from those with one slash. obstore reads the object of the other name
    for the first, and rejects the second whenever it is asked. Only with fsspec as the chosen back
    end are they passed.
    """
    scheme, _, place = uri.partition("://")
    if scheme not in BUCKET_SCHEMES or backend == "fsspec" or "//" not in place.rstrip("/"):
        return
    raise error(
        f"{uri} has an empty part between two slashes, which is another key than with one slash, and "
        f"which obstore cannot read. Write one slash, or, if the object is really named so, read it "
        f"through fsspec where there is that choice (storage: backend: fsspec), or copy it to "
        f"another key"
    )
