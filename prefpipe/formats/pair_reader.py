"""Records of a set whose columns a Layout names -> Preferences, and the prompts that they answer."""

from collections.abc import Mapping
from typing import Any

from prefpipe.formats.compared import (
    Compared,
    Record,
    candidate_texts,
    compared,
    list_at,
    own_id,
    own_margin,
    own_tie,
)
from prefpipe.formats.guard import Guard
from prefpipe.formats.layout import (
    Layout,
    first_at,
    hash_of,
    missing,
    number,
    source_of,
    value_at,
)
from prefpipe.formats.markup import (
    NEMO,
    SUSPECT,
    markup_of,
    prompt_turns,
    split_turns,
    without_end,
)
from prefpipe.formats.turns import (
    asked_turns,
    earlier_turns,
    have_a_question_in_common,
    holds_turns,
    interleaved,
    is_empty,
    is_missing,
    is_none,
    not_text,
    only_text,
    read_text,
    read_turns,
)
from prefpipe.rows import (
    Message,
    Preference,
    Prompt,
    Responses,
    answer_of,
    as_turns,
    flatten_turns,
)

Side = str | list[Message]
"""A text alone, or turns."""


class PairReader:
    """Reads the records of one file, and counts for a person what it meets on the way."""

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        self.layout, self._seed = layout, seed
        self.guard = Guard(layout.columns())
        self._prompt_name = layout.prompt[0] if layout.prompt else "prompt"
        special = layout.answers or layout.candidates or layout.input
        if not (special or layout.transcripts or layout.repeats_prompt or layout.texts):
            beside = filter(None, (layout.id, layout.source, layout.margin, layout.tie))
            self.guard.harmless |= {self._prompt_name, layout.chosen, layout.rejected, *beside}

    def read(self, record: Any) -> list[Preference]:
        """The pairs of a record, mostly one. Raises ValueError; Unusable for one that is no pair."""
        layout = self.layout
        if (prompt := self._plain_prompt(record)) is not None:
            good, bad = record[layout.chosen], record[layout.rejected]
            if prompt and good.startswith(prompt) and bad.startswith(prompt):
                self.guard.repeats += 1
            tie, margin = own_tie(layout, record), own_margin(layout, record)
            return [self._row(record, prompt, good, bad, tie, margin)]
        return [
            self._row(record, asked, p.better, p.worse, p.tie, p.margin, p.suffix)
            for asked, p in self._pairs(record)
        ]

    def question(self, record: Any) -> str:
        """The question that its pairs ask, as one text. Raises as read does."""
        prompt = self._plain_prompt(record)
        return flatten_turns(self._pairs(record)[0][0]) if prompt is None else prompt

    def prompt(self, record: Any) -> Prompt:
        """What its answers answer; of a conversation, the turns up to the user's last one.
        Raises as read does."""
        if not self.layout.only_prompts:
            row = self.read(record)[0]
            id = own_id(self.layout, record)
            return Prompt(id=id or hash_of(row.prompt), prompt=row.prompt, source=row.source)
        prompt, markup = self._prompt(record)
        name, value = first_at(record, self.layout.conversation)
        if not is_empty(value):
            turns = asked_turns(self._side(record, value, name, None), name)
            prompt = earlier_turns(prompt, turns, (), (name, name))
        elif markup and isinstance(prompt, list):
            prompt = asked_turns(prompt, self._prompt_name)
        if prompt is None:
            raise missing(record, self.layout.prompt or ("prompt",), "--prompt-column")
        if not isinstance(prompt, str) and prompt[-1]["role"] != "user":
            role = prompt[-1]["role"]
            raise ValueError(f"{self._prompt_name}: found role {role} last, wanted user")
        prompt = self._with_system(record, prompt)
        id, source = own_id(self.layout, record), self._source(record)
        return Prompt(id=hash_of(prompt) if id is None else id, prompt=prompt, source=source)

    def responses(self, record: Any) -> Responses:
        """Its prompt with all of its answers, whichever is better. Raises as read does."""
        layout = self.layout
        if not layout.candidates:
            row = self.read(record)[0]
            answers, prompt = [answer_of(row.chosen), answer_of(row.rejected)], row.prompt
        else:
            own, markup = self._prompt(record)
            if own is None:
                raise missing(record, self.layout.prompt or ("prompt",), "--prompt-column")
            prompt = self._with_system(record, own)
            texts = candidate_texts(layout, record)
            answers = [without_end(text, markup) if markup else text for text in texts]
        id, source = own_id(layout, record), self._source(record)
        made = hash_of([prompt, answers]) if id is None else id
        return Responses(id=made, prompt=prompt, responses=answers, source=source)

    def has_id(self, record: Record) -> bool:
        """Whether its pairs' ids are its own, and not made of its content."""
        return self.layout.id is not None and not is_missing(value_at(record, self.layout.id))

    def own_id(self, record: Any) -> str | None:
        """The record's id where it has one. Raises ValueError."""
        return own_id(self.layout, record)

    def _plain_prompt(self, record: Any) -> str | None:
        """The prompt of a record of three plain texts, beside which nothing matters; None for any
        other. Most are such: to look at all that another may be takes several times as long."""
        if type(record) is not dict or not self.guard.harmless.issuperset(record):
            return None
        layout = self.layout
        prompt, good = record.get(self._prompt_name), record.get(layout.chosen)
        bad = record.get(layout.rejected)
        if type(prompt) is not str or type(good) is not str or type(bad) is not str:
            return None
        suspect = prompt[:1] in SUSPECT or good[:1] in SUSPECT or bad[:1] in SUSPECT
        if suspect and any(markup_of(text) or holds_turns(text) for text in (prompt, good, bad)):
            return None
        return None if NEMO in prompt or prompt[:2] == '["' else prompt

    # -- the prompt

    def _prompt(self, record: Any) -> tuple[Side | None, str | None]:
        """The prompt's own column, as text or turns (None: nothing stands there); its markup."""
        if not isinstance(record, Mapping):
            raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
        self.guard.look_at(record)
        name, value = first_at(record, self.layout.prompt)
        if self.layout.texts or is_none(value):
            return None, None
        value = only_text(value, name)
        if not isinstance(value, str):
            return read_turns(value, name), None
        if self.layout.input and not is_missing(more := value_at(record, self.layout.input)):
            value = f"{value}\n{read_text(more, self.layout.input)}"
        if markup := markup_of(value) or ("nemo" if NEMO in value else None):
            return prompt_turns(value, markup, name), markup
        return (read_turns(value, name) if holds_turns(value) else value), None

    def _with_system(self, record: Record, prompt: Side) -> Side:
        name, value = first_at(record, self.layout.system)
        if is_missing(value) or not (text := read_text(value, name)).strip():
            return prompt
        system = Message(role="system", content=text)
        turns = as_turns(prompt)
        if turns[0]["role"] != "system":
            return [system, *turns]
        if turns[0]["content"].strip() != system["content"].strip():
            raise ValueError(f"{name}: is not the text of the system turn (--system-column None)")
        return turns

    def _repeats(self, prompt: Side | None, good: str, bad: str) -> bool:
        found = isinstance(prompt, str) and bool(prompt) and good.startswith(prompt)
        found = found and bad.startswith(str(prompt))
        self.guard.repeats += found
        return found

    # -- the pair

    def _pairs(self, record: Any) -> list[tuple[Side, Compared]]:
        """What each pair of the record answers, and its answers as texts."""
        if self.layout.transcripts:
            texts = [value_at(record, name) for name in (self._prompt_name, self.layout.chosen)]
            marked = {markup_of(text) for text in texts if isinstance(text, str)}
            if not marked & {"human", "human_lines"}:
                raise ValueError("prompt, chosen: wanted a transcript (Human: .. Assistant: ..)")
        own, markup = self._prompt(record)
        found = compared(self.layout, record, self.guard, self._seed)
        if pairs := [self._pair(record, own, markup, pair) for pair in found]:
            return pairs
        raise ValueError(f"{self.layout.candidates}: found no answer to compare")

    def _pair(
        self, record: Record, prompt: Side | None, markup: str | None, found: Compared
    ) -> tuple[Side, Compared]:
        layout, (first, second) = self.layout, found.names
        good, bad = (
            self._side(record, value, name, prompt)
            for value, name in ((found.better, first), (found.worse, second))
        )
        if not layout.prompt and isinstance(bad, str) and not isinstance(good, str):
            bad = [*good[:-1], Message(role="assistant", content=bad)]  # to the same turns
        before = prompt
        if isinstance(good, str) and isinstance(bad, str):
            if markup:
                good, bad = without_end(good, markup), without_end(bad, markup)
            if prompt is None and layout.common_beginning:
                before, good, bad = _common_beginning(good, bad)
        elif isinstance(good, str) or isinstance(bad, str):
            raise ValueError(
                f"{second}: found another form than {first}; wanted both text or both turns"
            )
        else:
            before = earlier_turns(prompt, good[:-1], bad[:-1], found.names)
            for name, last in ((first, good[-1]), (second, bad[-1])):
                if last["role"] != "assistant":
                    raise ValueError(f"{name}: found role {last['role']} last, wanted assistant")
            good, bad = good[-1]["content"], bad[-1]["content"]
        if before is None:
            raise missing(record, self.layout.prompt or ("prompt",), "--prompt-column")
        if not isinstance(before, str) and before[-1]["role"] != "user":
            role = before[-1]["role"]
            raise ValueError(f"{first}: found role {role} last before the answer, wanted user")
        if self._repeats(prompt, good, bad) and layout.repeats_prompt:
            good, bad = (text.removeprefix(str(prompt)).lstrip() for text in (good, bad))
        elif layout.repeats_prompt:
            raise ValueError(f"{first}, {second}: found one that does not begin with the prompt")
        return self._with_system(record, before), found._replace(better=good, worse=bad)

    def _side(self, record: Record, value: Any, name: str, prompt: Side | None) -> Side:
        """An answer: its text, or turns that end with it."""
        layout = self.layout
        if value is None:
            raise not_text(name, "null")
        if layout.texts:
            turns = interleaved(list_at(record, self._prompt_name), value, name)
        elif not isinstance(value, str) or holds_turns(value):
            turns = read_turns(value, name)
        elif markup := markup_of(value):
            turns = split_turns(value, markup, name)
            if prompt and not have_a_question_in_common(as_turns(prompt), turns):
                return value  # an answer that happens to be a dialogue
        else:
            return value
        if layout.turn and (judged := number(value_at(record, layout.turn), layout.turn)):
            answers = [k for k, turn in enumerate(turns) if turn["role"] == "assistant"]
            if 1 <= judged <= len(answers):
                turns = turns[: answers[int(judged) - 1] + 1]
        return turns

    def _source(self, record: Record) -> str | None:
        name, within = self.layout.source, self.layout.set_name
        source = source_of(value_at(record, name), name) if name else None
        return f"{within}/{source}" if within and source else within or source

    def _row(
        self,
        record: Record,
        prompt: Side,
        good: str,
        bad: str,
        tie: bool,
        margin: float | None,
        suffix: str = "",
    ) -> Preference:
        id = own_id(self.layout, record)
        self.guard.margins += margin is not None
        self.guard.ties += tie
        return Preference(
            id=hash_of([prompt, good, bad]) if id is None else id + suffix,
            prompt=prompt,
            chosen=good,
            rejected=bad,
            margin=margin,
            tie=tie,
            source=self._source(record),
        )


def _common_beginning(first: str, second: str) -> tuple[str, str, str]:
    """TRL's rule (trl.extract_prompt): what both begin with is the prompt, a space at its end is not."""
    both = enumerate(zip(first, second, strict=False))
    at = next((k for k, (a, b) in both if a != b), min(len(first), len(second)))
    at -= first[:at].endswith(" ")
    return first[:at], first[at:], second[at:]
