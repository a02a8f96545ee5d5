"""The model card: what a reader of the folder must know before using the model."""

import json
from collections.abc import Mapping
from typing import Any

_CARD = """\
---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags: [trl, {method}]
---
# {title}

{what}

## Data

{data}

## Results

{results}

`loss_curve.csv` and `loss_curve.png` hold every step; `*.meta.json` all settings, versions and counts.

## Settings

```json
{settings}
```

## Intended use

{use}
"""


def model_card(
    *,
    title: str,
    base: str,
    library: str,
    method: str,
    what: str,
    data: Mapping[str, Any],
    results: Mapping[str, float],
    settings: Mapping[str, Any],
    use: str,
) -> str:
    """README.md of a model's folder, as the hub reads it.

    data: name -> count or text; results: name -> number, printed with four digits.
    """
    return _CARD.format(
        title=title,
        base=json.dumps(base),
        library=library,
        method=method,
        what=what,
        data="\n".join(f"- {name}: {value}" for name, value in data.items()),
        results="\n".join(f"- {name}: {value:.4g}" for name, value in results.items()),
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
        use=use,
    )
