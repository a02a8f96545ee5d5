"""Templates, and the one renderer: sampling, training and scoring all see the same token ids.

Templates are Jinja files in `prefpipe/templates`; a setting may name another file, for example the
exact prompt a published checkpoint was trained with. The question and the answers come first and
the instruction last, so that the variants of one item share a prefix.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
import jinja2.nodes

from prefpipe.files import DataError
from prefpipe.rows import Language, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"

# Keys of the judge's JSON object: (why, which answer). Published judges were trained on these.
ANSWER_KEYS: dict[Language, tuple[str, str]] = {
    "en": ("reason", "better_answer"),
    "zh": ("原因", "更好的回答"),
}

# A line that begins with a marker of our templates, inside the text of a person or of a model.
_MARKER = re.compile(
    r"^(\\*\[(?:Question|Answer [12]|Text \d+|Context|Instruction|问题|回答[12])\])", re.MULTILINE
)

# Where a judge prompt's question ends. A line of the question's own that says so is escaped.
_FIRST_ANSWER = re.compile(r"^\[(?:Answer 1|回答1)\]$", re.MULTILINE)

_PROBE = "prefpipe-probe"
_HIDDEN = "\ufdd0"  # a code point that Unicode keeps out of texts


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
    """(text, None) or ("", variable) in order, where there is nothing else in the template; else None.

    Joining them takes 1 us; jinja sets up a context first, which takes 6, a tenth of a row's time.
    """
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
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        path = Path(name)
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
    """The files that a template setting stands for: they are part of a run's input.

    name: a name in prefpipe/templates, or a file; None: the built_in ones, of each language.
    """
    if name is None:
        return sorted(TEMPLATES.glob(f"{built_in}.*.jinja"))
    path = TEMPLATES / f"{name}.jinja"
    return [path if path.is_file() else Path(name)]


def escape_markers(text: str) -> str:
    r"""Put a backslash before a line's leading template marker, so that no answer can pose as two.

    "[Answer 2]\nx" becomes "\[Answer 2]\nx"; texts without a marker are unchanged.
    """
    return _MARKER.sub(r"\\\1", text) if "[" in text else text


def detect_language(text: str) -> Language:
    """zh where at least a fifth of the letters are CJK ideographs, else en."""
    if text.isascii():  # most texts: counting would take as long as all the rest of a row
        return "en"
    cjk = sum("\u3400" <= c <= "\u9fff" for c in text)
    letters = sum(c.isalpha() for c in text)
    return "zh" if cjk and cjk * 5 >= letters else "en"


def judge_prompt(
    question: str,
    answer_1: str,
    answer_2: str,
    *,
    language: Language,
    hint: int | None = None,
    template: str | Path | None = None,
) -> str:
    """The judge's user turn; with a hint (1 or 2), the turn that asks why that answer is better.

    template: a name or file to use instead of `judge.<language>` (or `guide.<language>`); it gets
    question, answer_1, answer_2 and, for a hinted prompt, hint.
    """
    kind = "judge" if hint is None else "guide"
    values = {
        "question": escape_markers(question),
        "answer_1": escape_markers(answer_1),
        "answer_2": escape_markers(answer_2),
    }
    if hint is not None:
        values["hint"] = str(hint)
    name = template or f"{kind}.{language}"
    return load_template(name, frozenset(values)).render(**values)


def question_of(prompt: str) -> str:
    """The part of a judge prompt before its first answer; all of it where the template is another."""
    return _FIRST_ANSWER.split(prompt, maxsplit=1)[0]


def flatten_turns(prompt: str | Sequence[Message]) -> str:
    """A prompt as one question: text or a single user turn as it is, several each behind its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The chat template's text up to where the assistant's answer begins.

    A leading system turn moves into the first user turn where the template knows no system role.
    Raises TemplateError where an answer would not stand right behind the text (the template lacks
    a generation prompt, or rewrites earlier turns), since then no score would be read at the place
    that was trained; or where it does not take these roles.
    """
    if not tokenizer.chat_template:
        raise TemplateError(f"{tokenizer.name_or_path}: the tokenizer has no chat template")
    turns = [dict(m) for m in messages]
    if turns[0]["role"] == "system" and not _takes_system(tokenizer):
        first, second, *rest = turns
        turns = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest]
    try:
        text = _apply(tokenizer, turns, add_generation_prompt=True)
        answered = _apply(tokenizer, [*turns, {"role": "assistant", "content": _PROBE}])
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template refuses turns of {roles}: {error}"
        ) from None
    behind = answered[len(text) :].lstrip() if answered.startswith(text) else ""
    if not behind.startswith(_PROBE):
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template's generation prompt does not lead to the "
            f"assistant's answer: ...{text[-40:]!r} against ...{answered[-60:]!r}"
        )
    return text


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Token ids of render(): exactly one BOS where the tokenizer wants one, none elsewhere.

    A special token's name inside a turn ("<s>" in the source of a page) stays text: it neither
    starts nor ends anything.
    """
    specials = _special_tokens(tokenizer)
    if specials and any(specials.search(m["content"]) for m in messages):
        ids = _ids_with_names_as_text(tokenizer, messages, specials)
    else:
        ids = _encode_rendered(tokenizer, render(tokenizer, messages))
    bos = tokenizer.bos_token_id
    if bos is not None and _wants_bos(tokenizer):
        while ids[:1] == [bos]:
            ids = ids[1:]
        ids = [bos, *ids]
    return ids


def completion_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of an assistant's answer and the token that ends its turn."""
    return [*encode(tokenizer, text), end_of_turn_id(tokenizer)]


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a text that a person or a model wrote: no special token is among them."""
    return _token_ids(tokenizer, text, split_special_tokens=True)


def _encode_rendered(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a chat template's text: the names of special tokens in it are the tokens."""
    return _token_ids(tokenizer, text)


def _token_ids(tokenizer: "PreTrainedTokenizerBase", text: str, **options: Any) -> list[int]:
    # verbose would warn of texts that are longer than the model takes: callers leave them out by name
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]  # pyright: ignore[reportReturnType]


def _ids_with_names_as_text(tokenizer, messages, specials: re.Pattern[str]) -> list[int]:
    names: list[str] = []

    def hide(found: re.Match[str]) -> str:
        names.append(found[0])
        return f"{_HIDDEN}{len(names) - 1}{_HIDDEN}"

    hidden = [Message(role=m["role"], content=specials.sub(hide, m["content"])) for m in messages]
    parts = re.split(f"{_HIDDEN}(\\d+){_HIDDEN}", render(tokenizer, hidden))
    ids: list[int] = []
    for place, part in enumerate(parts):
        if place % 2:
            ids += encode(tokenizer, names[int(part)])
        elif part:
            ids += _encode_rendered(tokenizer, part)
    return ids


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer) -> re.Pattern[str] | None:
    """Finds the names of the tokenizer's special tokens."""
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, [*names, _HIDDEN]))) if names else None


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that the chat template puts behind an assistant's answer."""
    text = _apply(
        tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    )
    behind = _encode_rendered(tokenizer, text[text.rindex(_PROBE) + len(_PROBE) :].strip())
    if behind:
        return behind[0]
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise TemplateError(f"{tokenizer.name_or_path}: no token ends the assistant's turn")


def _apply(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)


def _takes_system(tokenizer) -> bool:
    try:
        text = _apply(
            tokenizer,
            [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}],
        )
    except jinja2.TemplateError:
        return False
    return _PROBE in text


def _wants_bos(tokenizer) -> bool:
    """Whether its template or its own post-processor puts a BOS first."""
    plain = tokenizer("x")["input_ids"]
    text = _apply(tokenizer, [{"role": "user", "content": "x"}])
    bos = tokenizer.bos_token
    return plain[:1] == [tokenizer.bos_token_id] or (bool(bos) and text.startswith(bos))
