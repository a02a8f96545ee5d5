"""What holds for every stage and module, whichever are added. A new file is covered unasked."""

import ast
import graphlib
import importlib
import inspect
import json
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import config
import prefpipe.rows
from prefpipe.reasons import REASONS
from prefpipe.settings import Script
from prefpipe.settings.command_line import shortcuts
from tests.examples import ROOT, run_stage

SCRIPTS = sorted(p for p in ROOT.glob("*.py") if p.stem != "config")
TOOLS = {"push": ["a", "b"], "on_ray": ["stage.py"], "serve_reward": ["model"]}
"""Scripts that make no rows and are in no path, with what must stand behind their names."""
STAGES = [p for p in SCRIPTS if p.stem not in TOOLS]
MODULES = sorted((ROOT / "prefpipe").rglob("*.py"))
PROFILES = sorted((ROOT / "profiles").glob("*.toml"))
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/README.md"))]
STAGE_NAMES = {p.stem for p in STAGES}
SCRIPT_NAMES = {p.stem for p in SCRIPTS}
HEAVY = ("torch", "transformers", "trl", "peft", "faiss", "openai", "pandas", "datasets", "scipy")
SAYS_IT_ALL = re.compile(r"input|output|seed|temperature|top_k|\w+_column")
each_stage = pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
each_profile = pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def settings_of(stage: str) -> type[Script]:
    return importlib.import_module(stage).Settings


def options_of(stage: str) -> set[str]:
    """The options a stage takes, as they are typed: --help, --max-new-tokens, --no-strict."""
    settings = settings_of(stage)
    options = {"--help"}
    for name, field in settings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        options |= {option, f"--no-{option[2:]}"} if field.annotation is bool else {option}
    return options | {f"--{short}" for short in shortcuts(settings).values()}


# ---- who imports whom

FLOORS = [  # a module imports from its own room and from rooms above it in this list, from none below
    "rows words ranges reasons draws screen foreign_json untidy_json rated_pairs thoughts opinions",
    "files languages questions",
    "templates shingles verdicts formats",
    "near_duplicates publish",
    "chat judge judgment_pairs rating_prompts",
    "ratings translations",
    "ratings_report",
    "models",
    "llm",
    "compare",
    "evaluation serving",
    "rag training",
    "report",
    "settings",
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names.split()}
PROGRAMS = [
    *SCRIPTS,
    ROOT / "config.py",
    *MODULES,
    *sorted((ROOT / "embedded").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
]
each_program = pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: str(p.relative_to(ROOT)))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere in it, also under TYPE_CHECKING: a circle
    of types is a circle."""
    known = {module_of(p) for p in PROGRAMS} | {"tests"}
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else node.module)
    return {name for name in names if name in known or name.partition(".")[0] == "tests"}


def room_of(module: str) -> str:
    return module.split(".")[1]


@each_module
def test_a_module_imports_only_from_its_own_room_and_the_floors_above(path):
    module = module_of(path)
    if module == "prefpipe":
        return
    own = room_of(module)
    for name in imported_modules(path):
        if name == "config":
            # the constants: `settings` reads them, so that no other room depends on a user's edits
            assert own == "settings", f"{module} imports config"
        elif name.startswith("prefpipe."):
            room = room_of(name)
            assert room == own or FLOOR[room] < FLOOR[own], f"{module} imports {name}"
        else:
            raise AssertionError(f"{module} imports {name}, which is no part of the package")


def test_every_room_stands_on_a_floor():
    rooms = {room_of(module_of(path)) for path in MODULES if module_of(path) != "prefpipe"}
    assert rooms == set(FLOOR)


def test_no_modules_import_each_other_in_a_circle():
    graph = {module_of(path): imported_modules(path) - {module_of(path)} for path in PROGRAMS}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


@each_program
def test_nothing_that_runs_imports_the_tests(path):
    assert not {name for name in imported_modules(path) if name.split(".")[0] == "tests"}


def test_no_command_of_the_documents_and_scripts_runs_the_tests():
    for path in [ROOT / "pipeline.sh", *DOCUMENTS]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"-m tests\.(?!campaign)", text), path


@each_script
def test_no_stage_imports_a_stage(path):
    assert not imported(path) & (SCRIPT_NAMES - {path.stem})


@each_module
def test_no_function_of_the_package_takes_settings(path):
    """Plain values say what a function depends on; only `settings` knows how they are read."""
    if room_of(f"{module_of(path)}.") == "settings":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                assert not (argument.arg in ("s", "settings") and kind == "Any"), node.name
                assert not re.search(r"Settings\b|\w*Stage\b", kind), f"{node.name}: {kind}"


# ---- sizes and names


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split("\n")) - 1


@each_script
def test_no_stage_is_longer_than_200_lines(path):
    assert lines_of(path) <= 200


def test_the_median_stage_has_at_most_150_lines():
    assert statistics.median(map(lines_of, STAGES)) <= 150


def test_config_is_what_a_user_edits():
    assert lines_of(ROOT / "config.py") <= 150
    tree = ast.parse((ROOT / "config.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.ClassDef)]


@each_module
def test_no_module_is_longer_than_300_lines(path):
    assert lines_of(path) <= 300 or path.name == "rows.py"  # read like a table


def test_no_two_files_share_a_name():
    names = [path.stem for path in PROGRAMS if not path.stem.startswith("__")]
    assert not sorted({name for name in names if names.count(name) > 1})


def test_no_word_of_a_stages_settings_is_the_name_of_a_constant_twice():
    """A path stands in config.py and nowhere else: stages take it from there."""
    own = {
        node.value
        for path in [*STAGES, *MODULES]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    paths = [value for name, value in vars(config).items() if name.isupper()]
    shown = {str(p) for p in paths if isinstance(p, str | Path) and "/" in str(p)}
    assert not own & (shown - {str(ROOT), str(config.PROFILES)})


@each_program
def test_a_docstring_begins_with_a_noun_or_a_verb(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (words := ast.get_docstring(node)):
            assert not words.startswith("Of "), words.split("\n")[0]


@each_module
def test_functions_are_typed(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            assert not bare, f"{node.name}: {bare}"


@each_module
def test_the_package_imports_where_there_is_no_posix(path):
    """Windows has no fcntl, resource, pwd, ...; os.fork and os.pread are POSIX only, too."""
    assert not imported(path) & {"fcntl", "resource", "pwd", "grp", "termios", "pty"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("os", "fork"), ("os", "pread")}


# ---- reasons

REASON_ARGUMENT = {
    "Reject": 1, "Failure": 1, "Unusable": 0, "Unreadable": 0, "Unscorable": 0, "left_out": 0, "reject": 0
}  # fmt: skip
"""Where the reason stands in a call, where it has no name."""


def reasons_written(path: Path) -> Iterator[str]:
    """Every reason that is spelled out in a file: reason="...", or as a positional argument."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        values = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
        called = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        at = REASON_ARGUMENT.get(called)
        if at is not None and len(node.args) > at:
            values.append(node.args[at])
        for value in values:
            parts = [*ast.walk(value)]
            for whole in [part for part in parts if isinstance(part, ast.JoinedStr)]:
                parts = [part for part in parts if part not in set(ast.walk(whole))]
            for part in parts:
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value:
                    yield part.value


@each_program
def test_every_reason_stands_in_the_table_of_reasons(path):
    assert not {reason for reason in reasons_written(path) if reason not in REASONS}


def test_every_reason_of_the_table_has_a_sentence_and_is_written_somewhere():
    words = {
        node.value
        for path in [*STAGES, *MODULES]
        if path.name != "reasons.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for reason, meaning in REASONS.items():
        assert re.fullmatch(r"[a-z0-9_]+", reason), reason
        assert meaning[0].isupper() and meaning.endswith("."), reason
        # some are put together: f"no_{variant}", f"{kind}_document"
        ends = [w for w in words if w.startswith("_") and reason.endswith(w)]
        starts = [w for w in words if w.endswith("_") and len(w) > 2 and reason.startswith(w)]
        assert reason in words or ends or starts, reason


def test_the_data_readme_has_the_table_of_reasons_and_names_no_other():
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    for words in re.findall(r"Reasons[^:]*:((?:[^`.]*`\w+`)+)", text):
        assert not set(re.findall(r"`([a-z]+_[a-z_]+)`", words)) - set(REASONS)
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in text, "python -m prefpipe.reasons prints the table"


# ---- help and settings


@each_script
def test_help_shows_the_docstring_and_loads_nothing_heavy(path):
    code = f"""
import runpy, sys
sys.argv = [{path.name!r}, "--help"]
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
import resource
used = resource.getrusage(resource.RUSAGE_SELF)
assert used.ru_utime + used.ru_stime < 2.5, used  # seconds of CPU; on an idle machine 0.6
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert docstring in result.stdout
    assert "--overwrite" in result.stdout or path.stem in TOOLS


@each_script
def test_every_setting_has_a_sentence(path):
    for name, field in settings_of(path.stem).model_fields.items():
        words = (field.description or "").strip()
        assert words or SAYS_IT_ALL.fullmatch(name), f"{name}: what is it?"
        assert not words or words[-1] in ".:)", f"{name}: {words!r} is no sentence"


@each_script
def test_every_setting_is_read_somewhere(path):
    read = set()
    for source in [*SCRIPTS, *MODULES, ROOT / "config.py"]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert not set(settings_of(path.stem).model_fields) - read


@each_script
def test_settings_are_frozen(path):
    settings = settings_of(path.stem)
    assert settings.model_config.get("frozen")


def test_no_stage_takes_the_variables_of_another():
    """E9: a prefix that begins another one would refuse that stage's variables as misspelt."""
    prefixes = {name: settings_of(name).model_config.get("env_prefix", "") for name in SCRIPT_NAMES}
    for name, prefix in prefixes.items():
        assert re.fullmatch(r"[A-Z][A-Z_]+_", prefix), (name, prefix)
        others = [other for other in SCRIPT_NAMES if other != name]
        assert not [other for other in others if prefixes[other].startswith(prefix)], name


@each_stage
def test_show_settings_prints_each_with_its_origin(path, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(path.stem).from_command_line(["--show-settings", "--seed", "7"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    names = [line.partition(" = ")[0] for line in shown.split("\n") if " = " in line]
    assert sorted(names) == sorted(settings_of(path.stem).model_fields)
    assert "seed = 7    # the command line" in shown


@each_script
def test_a_misspelt_option_is_refused(path, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(path.stem).from_command_line(["--sede=7", *TOOLS.get(path.stem, [])])
    assert end.value.code == 2
    assert "unrecognized arguments: --sede" in capsys.readouterr().err


# ---- docstrings


@each_stage
def test_the_docstring_example_is_rows_of_the_named_types(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    rows = [json.loads(line) for line in re.findall(r"^ *(?:-> )?(\{.*\})$", text, re.M)]
    types = [getattr(prefpipe.rows, name) for name in re.findall(r"(\w+) rows?\b", text)
             if hasattr(prefpipe.rows, name)]  # fmt: skip
    assert len(rows) >= 2, "give one row in and one row out"
    assert types, "name the row types: `Item rows`"
    for row in rows:
        fits = [kind for kind in types if set(row) == set(kind.model_fields)]
        # a field of a Reject may be left out where it is its default
        fits += [prefpipe.rows.Reject] if set(row) == {"id", "reason"} else []
        assert fits, (path.stem, row)
        fits[0].model_validate_json(json.dumps(row))


@each_stage
def test_the_docstring_says_how_to_run_it_and_what_it_reads_and_writes(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(r"^Reads ", text, re.M) and re.search(r"^Writes ", text, re.M)
    assert f"uv run {path.name}" in text


@each_module
def test_public_functions_have_a_docstring_or_are_their_own(path):
    """Everything public that another file uses by name is explained where it is defined."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert path.name == "__init__.py" or ast.get_docstring(tree), "what is the module for?"
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and len(node.body) > 2  # a short one is its own explanation
    ]
    assert not bare


# ---- profiles, pipeline, documents


def test_there_are_profiles():
    assert "conj-qwen2-7b" in {path.stem for path in PROFILES}


@each_profile
def test_a_profile_names_only_stages_and_settings_that_there_are(path):
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    everywhere = set().union(*(settings_of(name).model_fields for name in STAGE_NAMES))
    for table, values in tables.items():
        known = everywhere if table == "all" else set(settings_of(table).model_fields)
        assert set(values) <= known, table
        if table != "all":
            settings_of(table)(**values)  # values of the right type, within their bounds


def test_the_published_recipe_reaches_its_stages(tmp_path):
    """Con-J, as issue and paper state it; read where a user would see it."""

    def shown(stage: str) -> dict[str, str]:
        result = run_stage(stage, "--show-settings", cwd=tmp_path, env={"PROFILE": "conj-qwen2-7b"})
        assert result.returncode == 0, result.stderr
        lines = (line.partition("    # ")[0] for line in result.stdout.strip().split("\n"))
        return dict(line.split(" = ", 1) for line in lines)

    qwen = "Qwen/Qwen2-7B-Instruct"
    raw = shown("preprocess_dataset")
    assert raw["input"] == "Skywork/Skywork-Reward-Preference-80K-v0.1"
    assert raw["validation_input"] == ""
    sampling = shown("inference_best_of_n")
    names = ("model", "n", "temperature", "top_p", "top_k")
    assert [sampling[name] for name in names] == [qwen, "8", "1.2", "0.95", "50"]
    training = shown("dpo_training")
    names = ("model", "method", "learning_rate", "epochs", "max_length", "bf16")
    assert [training[n] for n in names] == [qwen, "lora", "5e-07", "1.0", "6400", "True"]
    assert shown("accuracy")["base"] == shown("inference_all")["model"] == qwen


def paths_of_the_pipeline() -> dict[str, list[list[str]]]:
    """The commands of each path of pipeline.sh, as words."""
    script = (ROOT / "pipeline.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    functions = re.findall(r"^(\w+)\(\) \{\n(.*?)^\}", script, re.M | re.S)
    return {
        name: [
            shlex.split(line, comments=True)[1:]
            for line in re.findall(r"^ *(?:run|train) .*$", body, re.M)
        ]
        for name, body in functions
    }


def test_pipeline_sh_runs_each_stage_in_some_path_and_no_other():
    paths = paths_of_the_pipeline()
    for name, commands in paths.items():
        scripts = [words[0] for words in commands]
        assert len(set(scripts)) == len(scripts), f"{name}: a stage stands twice"
        assert not [s for s in scripts if s.endswith(".py") and not (ROOT / s).is_file()], name
    run = {Path(words[0]).stem for commands in paths.values() for words in commands}
    assert not STAGE_NAMES - run, "in no path"


def test_the_options_in_pipeline_sh_are_those_of_the_stages():
    for commands in paths_of_the_pipeline().values():
        for script, *words in commands:
            if Path(script).stem in STAGE_NAMES:
                options = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert options <= options_of(Path(script).stem), script


def test_pipeline_sh_stops_at_the_first_failure_and_has_a_case_for_each_path():
    script = (ROOT / "pipeline.sh").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    for name in paths_of_the_pipeline():
        assert re.search(rf'^  {name}(\|\w+)*\) {name} "\$@"', script, re.M), name


def test_pipeline_sh_is_valid_bash_and_refuses_an_unknown_path():
    subprocess.run(["bash", "-n", ROOT / "pipeline.sh"], check=True)
    assert (ROOT / "pipeline.sh").stat().st_mode & 0o111
    script = (ROOT / "pipeline.sh").read_text(encoding="utf-8")
    without_install = script.replace("\nuv sync", "\n: uv sync")
    result = subprocess.run(
        ["bash", "-c", without_install, "pipeline.sh", "nonsense"], capture_output=True, text=True
    )
    assert result.returncode == 2 and "no path named nonsense" in result.stderr


@each_document
def test_each_command_of_the_documents_is_a_stage_with_options_it_has(path):
    text = path.read_text(encoding="utf-8")
    for command in re.findall(r"uv run (?:--no-sync )?(\w+\.py[^\n`#|)]*)", text):
        script, *words = shlex.split(command)
        stage = Path(script).stem
        assert stage in SCRIPT_NAMES, command
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= options_of(stage), command


@each_document
def test_the_links_and_files_that_a_document_names_are_there(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_readmes_tree_is_the_tree_one_file_a_line():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```\n(config\.py .*?)^```", text, re.M | re.S)
    named, folder = [], ""
    for line in tree.split("\n"):
        if entry := re.match(r"( *)([\w./]+\.(?:py|sh|md)|[\w/]+/)(?: |$)", line):
            indent, name = len(entry[1]), entry[2]
            if name.endswith("/"):
                folder = name if not indent else f"prefpipe/{name}" if indent == 2 else folder
            else:
                named.append(
                    name if not indent else f"{folder}{name}" if indent == 4 else f"prefpipe/{name}"
                )
    assert len(set(named)) == len(named)
    assert not [name for name in named if not (ROOT / name).is_file()]
    modules = {str(path.relative_to(ROOT)) for path in MODULES if path.name != "__init__.py"}
    assert not ({p.name for p in SCRIPTS} | modules) - set(named)


def test_every_file_kind_is_in_the_data_readme():
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    kinds = {
        name
        for name, kind in vars(prefpipe.rows).items()
        if inspect.isclass(kind) and issubclass(kind, prefpipe.rows.Row) and name != "Row"
        if "a line of the resume log" not in (kind.__doc__ or "")
    }
    assert not {name for name in kinds if not re.search(rf"\b{name}\b", text)}


def test_the_examples_of_the_data_readme_are_rows():
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    kinds = [
        kind
        for kind in vars(prefpipe.rows).values()
        if inspect.isclass(kind) and issubclass(kind, prefpipe.rows.Row)
    ]
    examples = re.findall(r"^    (\{.*\})$", text, re.M)
    assert len(examples) >= 10
    for example in examples:
        row = json.loads(example)
        fits = [kind for kind in kinds if set(row) == set(kind.model_fields)]
        if fits:
            fits[0].model_validate_json(example)
        else:  # a published format that some mapping reads
            from prefpipe.formats.opening import HowRead

            assert HowRead().choose("data/README.md", [row]).why, example


def test_no_file_names_a_registry_host_or_a_path_of_a_machine():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout, so which files are the project's is not known")
    words = (
        "pypi" + ".org",
        "python" + "hosted",
        "registry." + "npmjs",
        "/ro" + "ot/",
        "/wo" + "rk/",
    )
    found = [
        (name, word)
        for name in listed.stdout.split("\n")
        if (ROOT / name).is_file()
        for word in words
        if word.encode() in (ROOT / name).read_bytes()
    ]
    assert not found
    assert "uv.lock" not in listed.stdout.split("\n")
