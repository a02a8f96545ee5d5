"""JSON that a server or a model wrote."""

import json
import re
from typing import Any

# Commands whose first letter makes one of JSON's escapes of the backslash. With b and f any letters
# do: nobody writes a backspace or a form feed.
_COMMAND_NAMES = """
    nabla natural ne nearrow neg neq newcommand newline ngeq ni nleq nmid noindent nolimits
    nonumber not notin nparallel nsim nsubseteq nu nwarrow rangle rank rbrace rceil re rfloor
    rho right rightarrow rightleftharpoons root rVert rvert tag tan tanh tau text textbf textit
    textrm textsf texttt tfrac therefore theta thickapprox tilde times tiny to top triangle
    triangleleft triangleright
"""
_COMMANDS = frozenset(_COMMAND_NAMES.split())
_AS_WORDS = frozenset(["ne", "ni", "nmid", "nu", "tan", "to"])
"""Commands that may as well be a line end or a tab with a word behind it."""
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|(?P<name>[A-Za-z]+)|.)", re.DOTALL)
_DRIVE = re.compile(
    # not "Option A:" at a line's end
    r"(?i:(?<!answer )(?<!option )(?<!response )(?<!choice )(?<!case )(?<!part ))(?<![A-Za-z])[A-Za-z]:\\[nrtbf][a-z]"
)
_SAYS_LATEX = re.compile(r"\$|\\[()\[\]{}]|\\(?:frac|alpha|beta|sum|int|sqrt|cdot|le|ge|pi|in)\b")


def read_json(text: str | bytes, *, strict: bool = True) -> Any:
    """Its value, well formed. Raises ValueError where there is none, or one nested too deep."""
    try:
        return well_formed(json.loads(text, strict=strict))
    except RecursionError:
        raise ValueError("nested too deep") from None


def with_whole_backslashes(text: str) -> str:
    r"""JSON that a model wrote, each backslash doubled that it meant as one: `\alpha` is no JSON, and
    `\frac` would be read as a form feed and `rac`. Raises ValueError where either may be meant, as
    in `C:\new`: the text would silently be another."""
    if "\\" not in text:
        return text
    if _DRIVE.search(text):
        raise ValueError("a path with single backslashes")
    is_latex = bool(_SAYS_LATEX.search(text))

    def mend(escape: re.Match[str]) -> str:
        found, name = escape[0], escape["name"]
        if name is None:
            return {"'": "'"}.get(found[1], found if found[1] in '"\\/u' else "\\" + found)
        if name[0] in "nrt":
            is_command = name in _COMMANDS or (is_latex and name[0] in "rt" and name[1:2].islower())
            if name in _AS_WORDS and not is_latex:
                raise ValueError(f"{found} may be a command or a word behind a line end")
        else:
            is_command = name[0] not in "bf" or len(name) > 1
        return "\\" + found if is_command else found

    return _ESCAPE.sub(mend, text)


def well_formed(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair (`\\ud83d`, of an emoji that was cut):
    no file holds such a text."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {well_formed(key): well_formed(inner) for key, inner in value.items()}
    return type(value)(map(well_formed, value)) if isinstance(value, list | tuple) else value
