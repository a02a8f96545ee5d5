"""The prompts' templates: Jinja files in `prefpipe/templates`, or a file that a setting names.

The question and the answers come first and the instruction last, so that the variants of one item
share a prefix, which is computed once (prefpipe/models/trees.py).
"""

import datetime
import functools
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from prefpipe.files import DataError

TEMPLATES = Path(__file__).parent / "templates"

# A line that begins with a marker of our templates, inside the text of a person or of a model.
_MARKER = re.compile(
    r"^(\\*\[(?:Question|Answer [12]|Text \d+|Context|Instruction|问题|回答[12])\])", re.MULTILINE
)


class TemplateError(DataError):
    """A template, or a tokenizer's chat template, does not fit. The message says what to do."""


_MOST_SECONDS = 5.0
_MOST_CHARACTERS = 1_000_000  # of a prompt, beyond ten times the texts that it is given
_LARGEST = 100_000  # number in a call, or times that a text is repeated
# They make a text of any length from a short one; of methods there are filters that do the same.
_FILTERS_LEFT_OUT = ("center", "indent", "format", "batch", "slice", "wordwrap")
_METHODS_LEFT_OUT = ("format", "format_map", "join", "replace", "translate", "expandtabs")
_TICK = "__tick"


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Runs a template of a stranger's: it reaches no Python, and ends.

    Jinja's sandbox bounds no time: nested loops of nothing run for days. So each round of a loop and
    each call is a tick (the loops' are written into the template's tree), and a tick looks at the
    clock.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
        )
        self.ends_at = 0.0
        self.globals |= {_TICK: self.tick}
        del self.globals["lipsum"]
        self.filters = {k: v for k, v in self.filters.items() if k not in _FILTERS_LEFT_OUT}
        self.filters |= {"join": _join, "replace": _replace}

    def tick(self) -> str:
        if time.monotonic() > self.ends_at:
            raise TemplateError(f"takes longer than {_MOST_SECONDS:.0f} s for one prompt")
        return ""

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.tick()
        if getattr(obj, "__name__", "") in _METHODS_LEFT_OUT:
            raise TemplateError(
                f"calls {obj.__name__}(); join and replace are filters: a | join(b)"
            )
        if any(isinstance(v, int) and abs(v) > _LARGEST for v in (*args, *kwargs.values())):
            raise TemplateError(f"calls a function with a number over {_LARGEST:,}")
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [v for v in (left, right) if isinstance(v, int | float)]
        if len(numbers) < 2 or operator == "**":
            if operator == "%" or any(abs(v) > _LARGEST for v in numbers):
                raise TemplateError(f"has {operator} of a text, or of a number over {_LARGEST:,}")
            lengths = [len(v) for v in (left, right) if hasattr(v, "__len__")]
            _check_length(sum(lengths) * int(max(1, *map(abs, numbers), 1)))
        return super().call_binop(context, operator, left, right)

    def compiled(self, tree: jinja2.nodes.Template) -> jinja2.Template:
        """The template, ticking."""
        if tree.find(jinja2.nodes.Concat):
            raise TemplateError("uses ~; write {{ a }}{{ b }}")
        for loop in tree.find_all(jinja2.nodes.For):
            name = jinja2.nodes.Name(_TICK, "load", lineno=loop.lineno)
            call = jinja2.nodes.Call(name, [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, jinja2.nodes.Output([call], lineno=loop.lineno))
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None))


def _check_length(length: int) -> None:
    if length > 10 * _MOST_CHARACTERS:
        raise TemplateError(f"makes a text of more than {10 * _MOST_CHARACTERS:,} characters")


def _join(values: Iterable[object], between: str = "") -> str:
    texts = list(map(str, values))
    _check_length(sum(map(len, texts)) + len(texts) * len(between))
    return between.join(texts)


def _replace(text: object, old: str, new: str) -> str:
    _check_length(str(text).count(old) * len(new))
    return str(text).replace(old, new)


class Template:
    """A Jinja template. variables: what render() must be given."""

    def __init__(self, text: str, name: str = "template") -> None:
        """name: for the message of an error."""
        self._name, self._sandbox = name, _Sandbox()
        try:
            tree = self._sandbox.parse(text)
            used = jinja2.meta.find_undeclared_variables(tree)
            self.variables = frozenset(used - set(self._sandbox.globals))
            self._parts = _texts_and_variables(tree, self.variables)
            self._jinja = self._sandbox.compiled(tree)
        except TemplateError as error:
            raise TemplateError(f"{name}: {error}") from None
        except (RecursionError, MemoryError):
            raise TemplateError(f"{name}: nested too deep") from None

    def render(self, **values: object) -> str:
        if self._parts is not None and self.variables <= values.keys():
            return "".join([t if name is None else str(values[name]) for t, name in self._parts])
        most = _MOST_CHARACTERS + 10 * sum(len(str(value)) for value in values.values())
        self._sandbox.ends_at = time.monotonic() + _MOST_SECONDS
        pieces, size = [], 0
        try:
            for piece in self._jinja.generate(values):
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise TemplateError(f"gives more than {most:,} characters for one prompt")
                self._sandbox.tick()
        except Exception as error:  # whatever a template of a stranger's raises
            why = (
                str(error)
                if isinstance(error, TemplateError)
                else f"{type(error).__name__}: {error}"
            )
            raise TemplateError(f"{self._name}: {' '.join(why.split())[:200]}") from None
        return "".join(pieces)


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
        template = Template(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{path}:{error.lineno}: {(error.message or '')[:200]}") from None
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
