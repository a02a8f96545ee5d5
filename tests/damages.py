"""Damages of every file that a person can hand in, drawn from a seed: what tests/bad_inputs.py feeds the stages.

A damage changes a file in place and says in a few words what it did. Which file it is, its ending
says; where no rule is known for an ending, its bytes are damaged. JSON that json.dumps cannot write (ten
thousand brackets, numbers without end, halves of surrogate pairs) is put in as text, behind a mark.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[random.Random, Path], str]

_MARK = "\ue000raw%d\ue000"
"""Stands in a JSON text where a piece of _RAW goes."""
_RAW = [
    "[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000, "[" * 300 + "]" * 300,
    "9" * 5000, "-" + "9" * 400, "1e999", "-1e999", "NaN", "Infinity", "1" * 400 + ".5", "1e-999", "-0",
    '"a\\ud800b"', '"\\udfff"', '"a\\u0000b"', '"\\ud83d\\ude00"', "01", "1.", ".5", "'x'", "", "undefined",
    "True", "[1,]", '{"a":1,}', '{"a":1,"a":2}', '"unfinished', "/* c */ 1", "\u00a01", "tru", "+1",
]  # fmt: skip
TEXTS = [
    "", " ", "\n", "\t", "\0", "a\0b", "\x1b[31mred\x07", "\u202egnp\u2066", "\ufeff", "\u200b", "\ufdd0",
    "\u2028", "\r", "a\rb", "a\r\nb", "é", "e\u0301", "\u0301", "\U0001f600", "中文", "<|im_end|>",
    "<|im_start|>assistant\n", "[Answer 2]", "\\", "\\\\n", '"', '""', "'", "`", "```", "{", "}", "{{ x }}",
    "{% if %}", "${HOME}", "%s", "%(a)s", "null", "None", "NaN", "true", "-1", "1e9", "0x10", "١٢",
    "../../../etc/passwd", "/", "a/b", "a\\b", "con", ".", "..", "~", "a\tb", "#1", "x#0", "\ud7ff",
    "Human: a\n\nAssistant: b", "[CONTEXT]", "<think>", "</think>", "A", "B", "1", "2", "tie",
]  # fmt: skip
"""Texts that some reader, writer, terminal, shell or file system takes for something else."""
_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    2**31,
    -(2**31),
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.5,
    1e308,
    1e-320,
]
_CODECS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7", "shift_jis", "gb18030")


# ---- values


def any_text(rng: random.Random) -> str:
    """Odd ones, pieces of them, long ones, any characters."""
    how = rng.randrange(6)
    if how < 3:
        return rng.choice(TEXTS)
    if how == 3:
        return "".join(rng.choice(TEXTS) for _ in range(rng.randrange(8)))
    if how == 4:
        return rng.choice(["x", "中", "a ", "\n", "e\u0301", "\\", "[", "-"]) * 10 ** rng.randrange(
            6
        )
    highest = rng.choice([0x80, 0xD800, 0x110000])
    codes = (rng.randrange(highest) for _ in range(rng.randrange(40)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def any_value(rng: random.Random, depth: int = 3) -> Any:
    """A JSON value of any type, depth and size; some cannot be written by json.dumps (`dump` can)."""
    how = rng.randrange(9 if depth else 6)
    if how == 0:
        return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}])
    if how == 1:
        return rng.choice(_NUMBERS)
    if how == 2:
        return _MARK % rng.randrange(len(_RAW))
    if how < 6:
        return any_text(rng)
    if how == 6:
        return [
            any_value(rng, depth - 1)
            for _ in range(rng.choice([1, 2, 5, 1000 // 9 ** (3 - depth)]))
        ]
    if how == 7:
        return {any_text(rng)[:200]: any_value(rng, depth - 1) for _ in range(rng.randrange(1, 5))}
    turns = [{"role": rng.choice(["user", "assistant", "system", "tool", "", any_text(rng)[:50]]),
              "content": any_value(rng, 0)} for _ in range(rng.randrange(1, 4))]  # fmt: skip
    for key in rng.sample(["role", "content"], rng.randrange(2)):
        turns[0].pop(key)
    return turns


def changed(rng: random.Random, value: Any) -> tuple[Any, str]:
    """The value with one thing in it, at any depth, replaced, gone, renamed, doubled or of another type."""
    if isinstance(value, dict) and value:
        keys = sorted(value, key=str)
        # ids join files, so they are hit more often
        key = "id" if "id" in value and rng.random() < 0.15 else rng.choice(keys)
        how = rng.randrange(10)
        copy = dict(value)
        if how == 0:
            del copy[key]
            return copy, f"without {key}"
        if how == 1:
            copy = {rng.choice([k.upper(), f" {k}", f"{k}\u200b", "\0" + k, ""]) if k == key else k: v for k, v in copy.items()}  # fmt: skip
            return copy, f"{key} renamed"
        if how == 2:
            other = rng.choice(keys)
            copy[key], copy[other] = copy[other], copy[key]
            return copy, f"{key} and {other} swapped"
        if how == 3:
            copy[any_text(rng)[:100]] = any_value(rng)
            return copy, "with a field more"
        inner, what = changed(rng, copy[key])
        copy[key] = inner
        return copy, f"{key}: {what}"
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        how = rng.randrange(4)
        if how == 0:
            return value[:at] + value[at + 1 :], f"without [{at}]"
        if how == 1:
            return [*value[: at + 1], *value[at:]], f"[{at}] twice"
        inner, what = changed(rng, value[at])
        return [*value[:at], inner, *value[at + 1 :]], f"[{at}] {what}"
    how = rng.randrange(6)
    if how == 0:
        return [value], "in a list"
    if how == 1:
        return json.dumps(value), "as JSON in a text"
    if how == 2 and isinstance(value, str):
        return any_text(rng) + value, "odd text before it"
    if how == 3 and isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([-value, value + 1, value * 10**6, float(value), str(value)]), "another number"  # fmt: skip
    new = any_value(rng)
    return new, f"is {_shown(new)}"


def _shown(value: Any) -> str:
    text = re.sub(r"\ue000raw(\d+)\ue000", lambda m: f"raw {_RAW[int(m[1])][:12]}", repr(value))
    return ascii(text[:60])


def dump(value: Any) -> bytes:
    """The value as JSON, with what json.dumps cannot write."""
    text = json.dumps(value, ensure_ascii=False)
    text = re.sub(r'"\ue000raw(\d+)\ue000"', lambda m: _RAW[int(m[1])], text)
    return re.sub("\ue000raw\\d+\ue000", "", text).encode("utf-8", "surrogatepass")


# ---- bytes, and whole files of any kind


def bytes_changed(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Cut, overwritten, lengthened, of another encoding, of another kind."""
    at = rng.randrange(len(data) + 1)
    how = rng.randrange(12)
    if how == 0:
        return data[:at], f"cut at byte {at} of {len(data)}"
    if how == 1:
        return data[at:], f"begins at byte {at}"
    if how in (2, 3):
        new = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            if new:
                new[rng.randrange(len(new))] = rng.randrange(256)
        return bytes(new), "some bytes are others"
    if how == 4:
        return data[:at] + rng.randbytes(rng.choice([1, 4, 100])) + data[
            at:
        ], f"bytes put in at {at}"
    if how == 5:
        end = min(len(data), at + rng.choice([1, 16, 4096]))
        return data[:at] + bytes(end - at) + data[end:], f"zeros from byte {at}"
    if how == 6:
        return data[:at] + data[at + rng.choice([1, 8, 512]) :], f"bytes gone at {at}"
    if how == 7:
        codec = rng.choice(_CODECS)
        return data.decode("utf-8", "replace").encode(codec, "replace"), f"in {codec}"
    if how == 8:
        new = rng.choice([b"", b"\0" * 1000, b" \n", b"\xef\xbb\xbf", b"{", b"[", b"\xff\xfe", b"PK\3\4", b"PAR1" * 9,
                          b"\x89PNG\r\n\x1a\n" + rng.randbytes(99), b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n",
                          b"cos\nsystem\n(S'true'\ntR.", rng.randbytes(2000), b"x" * 1_000_000])  # fmt: skip
        return new, f"is {new[:20].decode('latin-1')!a}"
    if how == 9:
        pack = rng.choice([gzip.compress, bz2.compress, lzma.compress])
        return pack(data), "is packed, and its name does not say so"
    if how == 10:
        return data + rng.choice([b"\0" * 500, rng.randbytes(50), data, b"\n\n\n", b"\x1a"]), "something behind it"  # fmt: skip
    old, new = rng.choice([(b"\n", b"\r\n"), (b"\n", b"\r"), (b"\n", b"\x0c"), (b'"', b"'"), (b",", b";"), (b"{", b"("),
                           (b":", b"="), (b" ", b"\xc2\xa0"), (b"a", b"\xe4"), (b"e", b"\xed\xa0\x80")])  # fmt: skip
    return data.replace(old, new), f"{old.decode()!a} is {new!r}"


def of_bytes(rng: random.Random, path: Path) -> str:
    data, what = bytes_changed(rng, path.read_bytes())
    path.write_bytes(data)
    return what


def of_place(rng: random.Random, path: Path) -> str:
    """The file gone, a folder, a link to nowhere or to itself."""
    path.unlink()
    how = rng.choice(["gone", "a folder", "a folder with a file", "a link to nowhere", "a link to itself"])  # fmt: skip
    if how.startswith("a folder"):
        path.mkdir()
        if how.endswith("file"):
            (path / "x").write_text("x")
    elif how.startswith("a link"):
        path.symlink_to("nowhere" if how.endswith("nowhere") else path.name)
    return how


# ---- files with rows


def of_lines(rng: random.Random, path: Path) -> str:
    """A damaged row among good ones."""
    lines = path.read_bytes().split(b"\n")[:-1]
    at = rng.randrange(len(lines))
    line, what = _line(rng, lines[at], rng.choice(lines))
    lines[at] = line
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return f"line {at + 1}: {what}"


def _line(rng: random.Random, line: bytes, other: bytes) -> tuple[bytes, str]:
    how = rng.randrange(12)
    if how < 7:
        value, what = changed(rng, json.loads(line))
        return dump(value), what
    if how == 7:
        new = rng.choice([b"hello", b"[1,2]", b"42", b"null", b'"x"', b"NaN", b"// c", b"{", b"{}", b"[]", b"", b" ", b"\xff",
                          b"\xef\xbb\xbf" + line, b"id,prompt", b"---", str(json.loads(line)).encode(), line[:-1] + b",}",
                          line + line, b"[" + line + b"]", line.replace(b'"id"', b'"id" : 1, "id"', 1)])  # fmt: skip
        return new, ascii(new[:20].decode("latin-1"))
    if how == 8:
        return other, "another line once more"
    if how == 9:
        return line + b"\n" + line, "twice"
    return bytes_changed(rng, line)


def of_csv(rng: random.Random, path: Path) -> str:
    """A cell, the header, or the number of fields of a row."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    at, how = rng.randrange(len(rows)), rng.randrange(5)
    column = rng.randrange(len(rows[0]))
    if how == 0:
        rows[at][column:] = []
        what = f"row {at} ends before column {column}"
    elif how == 1:
        rows[at] += [any_text(rng)] * rng.choice([1, 3, 2000])
        what = f"row {at} has fields more"
    elif how == 2:
        rows[0][column] = rng.choice([*rows[0], any_text(rng)])
        what = f"header {column} is {rows[0][column][:20]!a}"
    elif how == 3:
        for row in rows:
            del row[column : column + 1]
        what = f"without column {column}"
    else:
        rows[at][column] = any_text(rng)
        what = f"cell {at},{column} is {rows[at][column][:20]!a}"
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice([",", ",", ",", ";", "\t"])).writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", errors="surrogatepass")
    return what


def of_parquet(rng: random.Random, path: Path) -> str:
    """A column of another type, twice, gone; no rows; rows whose values are odd."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    names, how = table.column_names, rng.randrange(6)
    name = rng.choice(names)
    at = names.index(name)
    if how == 0:
        table, what = table.drop_columns([name]), f"without {name}"
    elif how == 1:
        columns = [*table.columns, table.column(at)]
        table, what = pyarrow.Table.from_arrays(columns, names=[*names, name]), f"{name} twice"
    elif how == 2:
        table, what = table.slice(0, 0), "no rows"
    elif how == 3:
        new = [*names[:at], rng.choice([name.upper(), "", any_text(rng)[:99]]), *names[at + 1 :]]
        table, what = table.rename_columns(new), f"{name} renamed"
    elif how == 4:
        rows = table.to_pylist()
        row = rng.randrange(len(rows))
        rows[row], what = changed(rng, rows[row])
        try:
            table = pyarrow.Table.from_pylist(rows)
        except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            table, what = table.slice(0, 1), "one row"
    else:
        column, what = _column(rng, table.num_rows)
        new_name = rng.choice([name, name, "more"])
        table = (
            table.set_column(at, name, column)
            if new_name == name
            else table.append_column("more", column)
        )
        what = f"{new_name} {what}"
    pyarrow.parquet.write_table(table, path)
    return what


def _column(rng: random.Random, rows: int) -> tuple[Any, str]:
    """A column of a type that a text column is not."""
    import pyarrow as pa

    def of(values: list[Any], kind: Any = None) -> Any:
        return pa.array((values * rows)[:rows], kind)

    utf8 = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    makers: dict[str, Callable[[], Any]] = {
        "null": lambda: pa.nulls(rows),
        "null texts": lambda: pa.nulls(rows, pa.string()),
        "numbers": lambda: of([1, 2, 3]),
        "texts and nulls": lambda: of(["x", None]),
        "equal texts": lambda: of(["x"]),
        "empty texts": lambda: of([""]),
        "NaN": lambda: of([float("nan"), 1.0]),
        "infinite": lambda: of([float("inf")]),
        "half floats": lambda: of([1.0, 2.0]).cast(pa.float16()),
        "no UTF-8": lambda: pa.concat_arrays([utf8] * rows),
        "bytes": lambda: of([b"\xff", b"ok"]),
        "four bytes": lambda: of([b"abcd"], pa.binary(4)),
        "dates beyond": lambda: of([2**30], pa.date32()),
        "times beyond": lambda: of([2**52, 1], pa.timestamp("ms")),
        "times of no zone": lambda: of([0], pa.timestamp("s", "No/Where")),
        "durations beyond": lambda: of([2**62], pa.duration("s")),
        "nanoseconds": lambda: of([1], pa.time64("ns")),
        "a dictionary": lambda: of(["a", "b"]).dictionary_encode(),
        "large texts": lambda: of(["a", "b"], pa.large_string()),
        "views": lambda: of(["a", "b"]).cast(pa.string_view()),
        "a map": lambda: of([[("a", "b")], None], pa.map_(pa.string(), pa.string())),
        "lists": lambda: of([["a"], [], None]),
        "lists of lists": lambda: of([[["a"]]]),
        "structs": lambda: of([{"role": "user", "content": "x", "name": None}]),
        "lists of null": lambda: of([[None]], pa.list_(pa.struct([("role", pa.string())]))),
        "turns": lambda: of([[{"role": "user", "content": None}]]),
        "booleans": lambda: of([True, None]),
    }
    what = rng.choice(sorted(makers))
    return makers[what](), f"is {what}"


def of_packed(rng: random.Random, path: Path) -> str:
    """What is inside a packed file damaged, and packed again."""
    import pyarrow

    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}
    inner, ending = path.with_suffix(""), path.suffix
    if ending == ".zst":
        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            inner.write_bytes(stream.read())
    else:
        inner.write_bytes(unpack[ending](path.read_bytes()))
    what = rng.choice(RULES[inner.suffix])(rng, inner)
    if ending == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(inner.read_bytes())
    else:
        path.write_bytes(pack[ending](inner.read_bytes()))
    inner.unlink()
    return what


# ---- files of settings, models, stores


def of_json(rng: random.Random, path: Path) -> str:
    value, what = changed(rng, json.loads(path.read_text(encoding="utf-8")))
    if rng.random() < 0.1:
        value = any_value(rng)
        what = f"is {_shown(value)}"
    path.write_bytes(dump(value))
    return what


def of_toml(rng: random.Random, path: Path) -> str:
    """A line of it taken away, doubled, or with another value."""
    lines = path.read_text(encoding="utf-8").split("\n")
    at = rng.randrange(len(lines))
    odd = ["= 3", "[", "[[x]]", "[a.b]", "x = nan", "x = 2020-01-01", "x = " + "[" * 5000, "x = " + "9" * 5000,
           "x.y = 1", "\0", "x = '''", "a = 1\na = 2", '"" = 1', "[all]", "all = 3", "x = {", "\ufeff"]  # fmt: skip
    values = ["3", "''", "nan", "inf", "[]", "{}", "true", "2020-01-01", "['a', 1]", '"\\ud800"', "-1", "1e400", '"\\u0000"']  # fmt: skip
    name = lines[at].partition("=")[0]
    new = rng.choice([rng.choice(odd), f"{name}= {rng.choice(values)}", "", f"{lines[at]}\n{lines[at]}", any_text(rng)])  # fmt: skip
    lines[at] = new
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return f"line {at + 1} is {new[:30]!a}"


_JINJA = [
    "{% if %}", "{{ nobody }}", "{{ question.nothing }}", "{{ 1/0 }}", "{% include 'x' %}", "{% extends 'x' %}",
    "{% import 'x' as y %}", "{{ question() }}", "{{ question[999] }}", "{{ question + 1 }}", "{{ question | nope }}",
    "{% if question is nope %}{% endif %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "\0", "{{", "{%", "{#",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{% if 1 %}" * 900 + "{% endif %}" * 900, "{{ raise_exception('x') }}",
    "{{ cycler.__init__.__globals__.os.system('touch RAN') }}", "{{ ''.__class__.__mro__ }}", "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**9 }}", "{% set messages = [] %}", "{% generation %}x{% endgeneration %}", "{{ messages[99].content }}",
    "{{ 'a' | center(10**9) }}", "{% for a in question %}{% for b in question %}{{ a }}{% endfor %}{% endfor %}", "{{ [1] | join(1) }}",
    "{% call %}", "{% do 1 %}", "{% break %}", "{{ self }}", "{{ caller() }}", "{{ loop.index }}", "{{ now() }}", "{{ 10 ** 10 ** 8 }}",
]  # fmt: skip


def of_template(rng: random.Random, path: Path) -> str:
    """Jinja that fails when it is read or when it is rendered, hangs, grows or runs code, put in or in its place."""
    text = path.read_text(encoding="utf-8")
    piece = rng.choice(_JINJA)
    at = rng.randrange(len(text) + 1)
    whole = rng.random() < 0.3
    path.write_text(piece if whole else text[:at] + piece + text[at:], encoding="utf-8")
    return f"{piece[:40]!a} {'is all' if whole else f'at {at}'}"


def of_weights(rng: random.Random, path: Path) -> str:
    """The header of a safetensors file, a tensor's numbers, its name, its shape."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name, how, body = rng.choice(names), rng.randrange(7), data[8 + length :]
    start, end = header[name]["data_offsets"]
    what = f"{name}: "
    if how == 0:
        body = body[:start] + b"\xff" * (end - start) + body[end:]
        what += "NaN"
    elif how == 1:
        del header[name]
        what += "gone"
    elif how == 2:
        header[f"x{name}"] = header.pop(name)
        what += "renamed"
    elif how == 3:
        header[name]["shape"] = rng.choice([header[name]["shape"][::-1], [*header[name]["shape"], 1], [], [-1], [0], [2**62]])  # fmt: skip
        what += f"shape {header[name]['shape']}"
    elif how == 4:
        header[name]["dtype"] = rng.choice(["I64", "F16", "BF16", "F64", "BOOL", "X", "", 3])
        what += f"dtype {header[name]['dtype']}"
    elif how == 5:
        header[name]["data_offsets"] = rng.choice([[0, 10**12], [end, start], [start + 1, end], [-4, 0], []])  # fmt: skip
        what += "offsets"
    else:
        header, what = changed(rng, header)
    text = dump(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return what[:90]


def of_folder(rng: random.Random, path: Path) -> str:
    """A folder of a model, a store or a data set: a file of it damaged, the folder empty or gone."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    if not files or rng.random() < 0.04:
        shutil.rmtree(path)
        how = rng.randrange(3)
        if how == 0:
            path.mkdir()
        elif how == 1:
            path.write_text("x")
        return ("an empty folder", "a file", "gone")[how]
    file = rng.choice(files)
    return f"{file.relative_to(path)}: {damage(rng, file)}"


RULES: dict[str, list[Damage]] = {
    ".jsonl": [of_lines, of_lines, of_lines, of_bytes],
    ".csv": [of_csv, of_csv, of_bytes],
    ".tsv": [of_bytes],
    ".parquet": [of_parquet, of_parquet, of_bytes],
    ".json": [of_json, of_json, of_bytes],
    ".toml": [of_toml, of_toml, of_bytes],
    ".jinja": [of_template, of_template, of_template, of_bytes],
    ".safetensors": [of_weights, of_weights, of_bytes],
    ".gz": [of_packed, of_bytes],
    ".xz": [of_packed, of_bytes],
    ".zst": [of_packed, of_bytes],
    ".bz2": [of_packed, of_bytes],
}


def damage(rng: random.Random, path: Path) -> str:
    """Damage the file or folder as its kind allows; in a few words, how."""
    if path.is_dir():
        return of_folder(rng, path)
    if not path.stat().st_size:
        return of_place(rng, path)
    rules = RULES.get(path.suffix, [of_bytes])
    rule = of_place if rng.random() < 0.03 else rng.choice(rules)
    try:
        return rule(rng, path)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return of_bytes(rng, path)  # damaged before, or of a form that the rule does not know
