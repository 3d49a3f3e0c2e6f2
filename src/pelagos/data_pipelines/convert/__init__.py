"""Data of the field in its published file formats, as Pelagos datasets.

A format is one file here and one line in `registry`: it looks at a source and says, as a `Source`,
which stored array holds which channels of which trajectories. Reading, writing and comparing are
the same for all. `docs/converting.md` lists the formats.
"""

from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.registry import FORMATS, open_source
from pelagos.data_pipelines.convert.source import Source, SourceError

__all__ = ["FORMATS", "ConvertOptions", "Source", "SourceError", "open_source"]
