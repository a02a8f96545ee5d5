"""What holds for every stage and module, whichever are added. A new file is covered unasked."""

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import config
import prefpipe.rows
from prefpipe.settings import Stage
from tests.examples import ROOT, run_stage, sentence

STAGES = sorted(p for p in ROOT.glob("*.py") if p.stem != "config")
MODULES = sorted((ROOT / "prefpipe").rglob("*.py"))
PROFILES = sorted((ROOT / "profiles").glob("*.toml"))
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/README.md"))]
STAGE_NAMES = {p.stem for p in STAGES}
HEAVY = ("torch", "transformers", "trl", "peft", "faiss", "openai", "pandas", "datasets", "scipy")
SAYS_IT_ALL = re.compile(r"input|output|seed|temperature|top_k|\w+_column")
each_stage = pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
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


def settings_of(stage: str) -> type[Stage]:
    return importlib.import_module(stage).Settings


def options_of(stage: str) -> set[str]:
    """The options a stage takes, as they are typed: --help, --max-new-tokens, --no-strict."""
    settings = settings_of(stage)
    options = {"--help"}
    for name, field in settings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        options |= {option, f"--no-{option[2:]}"} if field.annotation is bool else {option}
    shortcuts = settings.model_config.get("cli_shortcuts") or {}
    return options | {f"--{short}" for short in shortcuts.values()}


# ---- who imports whom


@each_module
def test_the_package_imports_no_stage_and_no_config(path):
    assert not imported(path) & (STAGE_NAMES | {"config"})


@each_stage
def test_no_stage_imports_a_stage(path):
    assert not imported(path) & (STAGE_NAMES - {path.stem})


# ---- help and settings


@each_stage
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
    assert "--overwrite" in result.stdout


@each_stage
def test_every_setting_has_a_sentence(path):
    for name, field in settings_of(path.stem).model_fields.items():
        words = (field.description or "").strip()
        assert words or SAYS_IT_ALL.fullmatch(name), f"{name}: what is it?"
        assert not words or words[-1] in ".:)", f"{name}: {words!r} is no sentence"


@each_stage
def test_every_setting_is_read_somewhere(path):
    read = set()
    for source in [*STAGES, *MODULES, ROOT / "config.py"]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert not set(settings_of(path.stem).model_fields) - read


@each_stage
def test_settings_are_frozen(path):
    settings = settings_of(path.stem)
    assert settings.model_config.get("frozen")


def test_e9_no_stage_takes_the_variables_of_another():
    """E9: a prefix that begins another one would refuse that stage's variables as misspelt."""
    prefixes = {name: settings_of(name).model_config.get("env_prefix", "") for name in STAGE_NAMES}
    for name, prefix in prefixes.items():
        assert re.fullmatch(r"[A-Z][A-Z_]+_", prefix), (name, prefix)
        others = [other for other in STAGE_NAMES if other != name]
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


@each_stage
def test_a_misspelt_option_is_refused(path, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(path.stem).from_command_line(["--sede", "7"])
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
            shlex.split(line, comments=True)[1:] for line in re.findall(r"^ *run .*$", body, re.M)
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
        assert stage in STAGE_NAMES, command
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= options_of(stage), command


@each_document
def test_the_links_and_files_that_a_document_names_are_there(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_readme_names_every_stage_and_every_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not {p.name for p in STAGES if p.name not in text}
    parts = {p.relative_to(ROOT).parts[1] for p in MODULES} - {"__init__.py"}
    missing = {part for part in parts if f"prefpipe/{part}" not in text}
    assert not missing


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
            from prefpipe.formats import FORMATS

            assert any(_reads(form.read, row) for form in FORMATS.values()), example


def _reads(mapping, record) -> bool:
    try:
        return bool(mapping(record))
    except ValueError:
        return False


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


# ---- where a value comes from


def test_the_command_line_beats_the_environment_beats_dotenv_beats_the_profile(tmp_path):
    (tmp_path / ".env").write_text("BEST_OF_N_N=5\nBEST_OF_N_TOP_K=6\n")
    env = {"PROFILE": "conj-qwen2-7b", "BEST_OF_N_N": "4", "BEST_OF_N_SEED": "9"}
    shown = run_stage("inference_best_of_n", "--n", "3", "--show-settings", cwd=tmp_path, env=env)
    lines = shown.stdout.strip().split("\n")
    assert "n = 3    # the command line" in lines
    assert "seed = 9    # BEST_OF_N_SEED in the environment" in lines
    assert "top_k = 6    # BEST_OF_N_TOP_K in .env" in lines
    assert "model = Qwen/Qwen2-7B-Instruct    # profile conj-qwen2-7b" in lines
    assert "requests_in_flight = 128    # config.py or the script" in lines


def test_a_long_option_of_one_letter_works_in_each_spelling(tmp_path):
    for words in (["--n", "3"], ["--n=3"], ["-n", "3"]):
        shown = run_stage("inference_best_of_n", *words, "--show-settings", cwd=tmp_path)
        assert "n = 3    # the command line" in shown.stdout, shown.stderr


@pytest.mark.parametrize("where", ["the environment", ".env"])
def test_e9_a_misspelt_variable_of_the_stages_own_prefix_is_refused(tmp_path, where):
    """E9: `extra="ignore"` alone would lose it. Variables of other stages are none of its business."""
    good = {"PREPROCESS_SEED": "1", "OPENAI_API_KEY": "sk-x"}
    bad = {"BEST_OF_N_TEMPRATURE": "0.5"}
    env = good | bad if where == "the environment" else good
    if where == ".env":
        lines = [f"{name}={value}\n" for name, value in (good | bad).items()]
        (tmp_path / ".env").write_text("".join(lines))
    said = sentence(run_stage("inference_best_of_n", "--show-settings", cwd=tmp_path, env=env))
    assert said == (
        f"BEST_OF_N_TEMPRATURE in {where} is no setting of inference_best_of_n.py; "
        "near: BEST_OF_N_TEMPERATURE"
    )


def test_e9_variables_without_a_prefix_set_nothing(tmp_path):
    """E9: a field named `path` or `n` does not read the shell's own variable."""
    shown = run_stage(
        "inference_best_of_n", "--show-settings", cwd=tmp_path, env={"N": "3", "SEED": "4"}
    )
    assert "n = 8    # config.py or the script" in shown.stdout
    assert "seed = 2021    # config.py or the script" in shown.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--n", "0"], "setting n (from the command line): found '0': Input should be greater"),
        (["--n", "many"], "setting n (from the command line): found 'many'"),
        (["--top-p", "0"], "setting top_p (from the command line): found '0'"),
        (["--temperature", "-1"], "setting temperature (from the command line): found '-1'"),
        (["--engine", "cloud"], "setting engine (from the command line): found 'cloud'"),
    ],
)
def test_a_wrong_value_is_a_sentence_with_its_origin(tmp_path, options, said):
    result = run_stage("inference_best_of_n", *options, cwd=tmp_path)
    assert said in sentence(result)


def test_a_wrong_profile_is_a_sentence(tmp_path, monkeypatch):
    said = sentence(run_stage("accuracy", cwd=tmp_path, env={"PROFILE": "conj-qwen2-70b"}))
    assert (
        said.startswith("PROFILE=conj-qwen2-70b: no conj-qwen2-70b.toml") and "there are:" in said
    )
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    monkeypatch.setenv("PROFILE", "mine")
    for text, error in [
        ("[inference_bestofn]\nn = 3\n", r"\[inference_bestofn\] is no stage"),
        ("[inference_best_of_n]\nm = 3\n", r"\[inference_best_of_n\] m is no setting"),
        ("[inference_best_of_n\n", r"mine\.toml: "),
    ]:
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(SystemExit, match=error):
            settings_of("inference_best_of_n").from_command_line([])


def test_a_path_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "a_file").write_text("")
    sample = ROOT / "embedded/sample/preferences-train.parquet"
    result = run_stage(
        "preprocess_dataset", "--input", sample, "--validation-input", "",
        "--limit", 3, "--output", tmp_path / "a_file/items", cwd=tmp_path,
    )  # fmt: skip
    assert sentence(result).endswith("a_file/items: Not a directory")
