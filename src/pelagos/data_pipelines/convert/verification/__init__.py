"""Comparing a finished dataset with its source, read a second way.

Conversion reads whole blocks, cuts and transposes them. If that is wrong, comparing its result with
itself says nothing. Nothing here uses `reading` or `readers`: files are opened anew (`second_files`),
single numbers are looked up by their indices, and statistics need no order of axes at all
(`second_reading`).
"""

from pelagos.data_pipelines.convert.verification.second_reading import SecondReading

__all__ = ["SecondReading"]
