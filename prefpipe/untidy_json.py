"""A judgment that is no JSON because of its quotes: written as Python writes it, or with bare ones inside."""

import re
from collections.abc import Collection
from itertools import islice

_NEAR = 40
"""Characters before the verdict's key in which the reason must have ended."""


def with_json_quotes(text: str, reasons: Collection[str], verdicts: Collection[str]) -> str | None:
    """The text whose one object {reason, verdict}, of these keys and in either order, is now JSON. None:
    there is no such object, or more that begin like it.

    Where a reason with quotes ends nothing says but what follows it: the verdict, or the object's end.
    """
    starts = list(islice(re.finditer(rf"\{{\s*{_key((*reasons, *verdicts))}", text), 2))
    keys = [key for key in verdicts if key in text]
    if len(starts) != 1 or len(keys) != 1 or text.count(keys[0]) != 1:
        return None
    start, verdict = starts[0], keys[0]
    if start["key"] in reasons:
        reason, quote, begin = start["key"], text[start.end() : start.end() + 1], start.end() + 1
        near = max(begin, text.index(verdict) - _NEAR)
        behind = rf"""(?P<end>['"])\s*,\s*{_key([verdict])}{_NUMBER}\s*,?\s*\}}"""
        found = re.compile(behind).search(text, near)
        if found is None or found["end"] != quote:
            return None
        inner, end = text[begin : found.start()], found.end()
    else:
        between = rf"""{_NUMBER}\s*,\s*{_key(reasons)}(?P<end>['"])"""
        found = re.compile(between).match(text, start.end())
        end = text.find("}") + 1
        whole = text[: end - 1].rstrip(" \n,")
        if found is None or end <= found.end() or text.count("}") > 1 or whole[-1] != found["end"]:
            return None
        reason, inner = found["key"], text[found.end() : len(whole) - 1]
    inner = re.sub(r'\\?"', r'\\"', inner.replace("\\'", "'"))
    judgment = f'{{"{reason}": "{inner}", "{verdict}": {found["number"]}}}'
    return f"{text[: start.start()]}{judgment}{text[end:]}"


_NUMBER = r"""(?P<q2>['"]?)(?P<number>[12])(?P=q2)"""


def _key(names: Collection[str]) -> str:
    return rf"""(?P<q>['"])(?P<key>{"|".join(map(re.escape, names))})(?P=q)\s*:\s*"""
