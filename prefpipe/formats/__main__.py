"""Print the table of formats that stands in README.md."""

from prefpipe.formats import FORMATS, presets

print(presets.table(FORMATS))
