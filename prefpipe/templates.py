"""The prompts' templates: Jinja files in `prefpipe/templates`, or a file that a setting names.

The question and the answers come first and the instruction last, so that the variants of one item
share a prefix, which is computed once (prefpipe/models/trees.py).
"""

import datetime
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.nodes

from prefpipe.files import DataError

TEMPLATES = Path(__file__).parent / "templates"

# A line that begins with a marker of our templates, inside the text of a person or of a model.
_MARKER = re.compile(
    r"^(\\*\[(?:Question|Answer [12]|Text \d+|Context|Instruction|问题|回答[12])\])", re.MULTILINE
)


class TemplateError(DataError):
    """A template, or a tokenizer's chat template, does not fit. The message says what to do."""


class Template:
    """A Jinja template. variables: what render() must be given."""

    def __init__(self, text: str) -> None:
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
        )
        tree = environment.parse(text)
        used = jinja2.meta.find_undeclared_variables(tree)
        self.variables = frozenset(used - set(environment.globals))
        self._jinja = environment.from_string(text)
        self._parts = _texts_and_variables(tree, self.variables)

    def render(self, **values: object) -> str:
        if self._parts is None or not self.variables <= values.keys():
            return self._jinja.render(values)
        return "".join([text if name is None else str(values[name]) for text, name in self._parts])


def _texts_and_variables(
    tree: jinja2.nodes.Template, variables: frozenset[str]
) -> list[tuple[str, str | None]] | None:
    """(text, None) or ("", variable) in order, where there is nothing else in the template; else
    None. Joining them takes 1 us; jinja sets up a context first, which takes 6, a tenth of a row's
    time."""
    parts: list[tuple[str, str | None]] = []
    for node in tree.body:
        for part in node.nodes if isinstance(node, jinja2.nodes.Output) else [node]:
            if isinstance(part, jinja2.nodes.TemplateData):
                parts.append((part.data, None))
            elif isinstance(part, jinja2.nodes.Name) and part.name in variables:
                parts.append(("", part.name))
            else:
                return None
    return parts


@functools.cache
def load_template(name: str | Path, variables: frozenset[str] | None = None) -> Template:
    """The template of that file, or of that name in `prefpipe/templates` (without `.jinja`).

    With variables, what the caller will give: TemplateError where the template asks for another
    one, or leaves one out (a prompt without its hint would be sampled as if it had one).
    """
    (path,) = template_files(str(name), "")
    if not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix(".jinja") for p in TEMPLATES.glob("*.jinja")))
        raise TemplateError(f"{name}: no such template file; in prefpipe/templates are: {known}")
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{path}:{error.lineno}: {error.message}") from None
    if variables is not None and (wrong := template.variables ^ variables):
        verb = "does not use" if wrong & variables else "uses"
        shown = ", ".join(sorted(wrong & variables or wrong))
        raise TemplateError(f"{path}: {verb} {shown}; wanted: {', '.join(sorted(variables))}")
    return template


def template_files(name: str | None, built_in: str) -> list[Path]:
    """The files that a template setting stands for, which are part of a run's input: of that name
    in prefpipe/templates, or that file; None: the built_in ones, of each language."""
    if name is None:
        return sorted(TEMPLATES.glob(f"{built_in}.*.jinja"))
    path = TEMPLATES / f"{name}.jinja"
    return [path if path.is_file() else Path(name)]


def escape_markers(text: str) -> str:
    r"""Put a backslash before a line's leading template marker, so that no answer can pose as two.

    "[Answer 2]\nx" becomes "\[Answer 2]\nx"; texts without a marker are unchanged.
    """
    return _MARKER.sub(r"\\\1", text) if "[" in text else text


# ---- chat templates, which stand in a tokenizer's files

_THINKING = re.compile(r"\{%- set enable_thinking = \w+ %\}\{\{ '' \}\}")
_DATE_CODES = ("%d", "%m", "%b", "%B", "%Y", "%y", "%a", "%A", "%j", "%H", "%M", "%S")


@dataclass
class ChatOptions:
    """What a run says to chat templates that ask; `use_chat_options` sets it, before tokenizers are loaded."""

    enable_thinking: bool | None = None
    """None: as the template has it."""
    date: datetime.date = datetime.date(2024, 7, 26)
    """The day that a template calls today: of a run that goes on tomorrow, too."""


_options = ChatOptions()


def use_chat_options(options: ChatOptions) -> None:
    """Let the tokenizers that are loaded from here on have these options."""
    global _options
    _options = options


def with_options(template: str, name: str) -> str:
    """The template with the run's options written into it, so that a model that is trained with
    them is saved with them. name: of its model, for messages.
    """
    thinking = _options.enable_thinking
    if thinking is not None:
        template = _THINKING.sub("", template)
        if "enable_thinking" not in template:
            raise TemplateError(
                f"{name}: enable_thinking: the chat template has no such option; leave it out"
            )
        # behind an expression, since Jinja drops a line end behind a statement
        template = f"{{%- set enable_thinking = {str(thinking).lower()} %}}{{{{ '' }}}}{template}"
    if "strftime_now" in template and "macro strftime_now" not in template:
        replaced = "".join(f" | replace('{c}', '{_options.date:{c}}')" for c in _DATE_CODES)
        today = f"{{%- macro strftime_now(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}"
        template = f"{today}{{{{ '' }}}}{template}"
    return template
