"""Where a setting comes from, and what a wrong one, or an error that nobody foresaw, says."""

import importlib
import json
from pathlib import Path

import pytest
from pydantic import BaseModel, field_serializer

import config
from prefpipe.files import DataError
from prefpipe.settings import Stage
from tests.examples import ROOT, run_stage, sentence, write_jsonl


def settings_of(stage: str) -> type[Stage]:
    return importlib.import_module(stage).Settings


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
def test_a_misspelt_variable_of_the_stages_own_prefix_is_refused(tmp_path, where):
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


def test_variables_without_a_prefix_set_nothing(tmp_path):
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
        ("all = 3\n", r"mine\.toml: all: wanted a table"),
        ("inference_best_of_n = [1]\n", r"mine\.toml: inference_best_of_n: wanted a table"),
        ("x = " + "[" * 9999, r"mine\.toml: "),
        ("[all]\nseed = " + "9" * 5000, r"mine\.toml: "),
        ("[all]\nx = 'ä'".encode("latin-1"), r"mine\.toml: byte 11 is not UTF-8"),
    ]:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "mine.toml").write_bytes(content)
        with pytest.raises((SystemExit, DataError), match=error):
            settings_of("inference_best_of_n").from_command_line([])


def test_a_path_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "a_file").write_text("")
    sample = ROOT / "embedded/sample/preferences-train.parquet"
    result = run_stage(
        "preprocess_dataset", "--input", sample, "--validation-input", "",
        "--limit", 3, "--output", tmp_path / "a_file/items", cwd=tmp_path,
    )  # fmt: skip
    assert sentence(result).endswith("a_file/items: Not a directory")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_an_env_file_that_is_no_utf8_is_a_sentence(tmp_path, encoding):
    (tmp_path / ".env").write_bytes("BEST_OF_N_N=5\n# ä\n".encode(encoding))
    said = sentence(run_stage("inference_best_of_n", "--show-settings", cwd=tmp_path))
    assert said.startswith(".env: byte ") and said.endswith("save it as UTF-8")


def test_an_env_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / ".env").write_bytes("BEST_OF_N_N=5\n".encode("utf-8-sig"))
    shown = run_stage("inference_best_of_n", "--show-settings", cwd=tmp_path)
    assert "n = 5    # BEST_OF_N_N in .env" in shown.stdout


def test_a_password_in_a_url_is_not_shown(tmp_path):
    shown = run_stage(
        "inference_best_of_n", "--show-settings", "--base-urls", "http://me:secret@host:1/v1",
        cwd=tmp_path,
    )  # fmt: skip
    assert "http://***@host:1/v1" in shown.stdout and "secret" not in shown.stdout


def test_a_tilde_is_the_home_folder(tmp_path):
    shown = run_stage(
        "inference_best_of_n", "--show-settings", "--output=~/x.jsonl",
        cwd=tmp_path, env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert f"output = {tmp_path}/x.jsonl" in shown.stdout


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_is_a_sentence_and_its_traceback_stands_in_a_log(
    tmp_path, monkeypatch, capsys, debug
):
    class Settings(Stage, env_prefix="NOBODY_"):
        pass

    def main(s: Settings) -> None:
        raise KeyError("http://me:secret@host sk-123")

    monkeypatch.setattr(config, "DATA", tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123 ")
    monkeypatch.setattr("sys.argv", ["x.py", *(["--debug"] if debug else [])])
    with pytest.raises(SystemExit) as end:
        Settings.run(main)
    (log,) = (tmp_path / "errors").iterdir()
    assert "unexpected KeyError" in str(end.value) and str(log) in str(end.value)
    everything = str(end.value) + log.read_text()
    assert "secret" not in everything and "sk-123" not in everything
    assert "in main" in log.read_text()
    assert ("in main" in capsys.readouterr().err) == debug


def test_ctrl_c_inside_a_serializer_is_ctrl_c(monkeypatch, capsys):
    """pydantic makes an error of its own of it, seen once in 700 kills."""

    class Interrupted(BaseModel):
        path: Path

        @field_serializer("path")
        def serialise(self, path: Path) -> str:
            raise KeyboardInterrupt

    class Settings(Stage, env_prefix="NOBODY_"):
        pass

    def main(s: Settings) -> None:
        Interrupted(path=Path("x")).model_dump_json()

    monkeypatch.setattr("sys.argv", ["x.py"])
    with pytest.raises(SystemExit) as end:
        Settings.run(main)
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith(": stopped; the same command goes on\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["x"], "unrecognized arguments: x"),
        (["--strict=x"], "ignored explicit argument 'x'"),
        (["--not-in=[1"], "not_in"),
        (["--seed", "9" * 5000], "setting seed (from the command line): found '999"),
        (["--score-columns", "one"], "setting score_columns"),
        (["--input", ""], "input: found no name"),
        (["--near-duplicate", "nan"], "setting near_duplicate"),
    ],
    ids=lambda word: str(word)[:25],
)
def test_a_wrong_word_of_the_command_is_one_short_sentence(tmp_path, words, said):
    """Neither the usage nor the stage's whole description before it."""
    line = sentence(run_stage("preprocess_dataset", *words, cwd=tmp_path))
    assert line.startswith("preprocess_dataset: ") and said in line and len(line) <= 300


def test_where_an_output_is_a_folder_the_output_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "2+2?", "chosen": "4", "rejected": "5"}\n' * 2)
    (tmp_path / "out/train.jsonl").mkdir(parents=True)
    options = ["--input", "x.jsonl", "--output", "out", "--validation-share", "0"]
    line = sentence(run_stage("preprocess_dataset", *options, cwd=tmp_path))
    assert "out/train.jsonl: Is a directory" in line


def test_where_an_output_cannot_be_written_it_is_named_as_the_person_did(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"id": "a", "prompt": "?", "chosen": "y", "rejected": "n"}])
    line = sentence(run_stage("report", str(tmp_path), "--output", "/proc/none", cwd=tmp_path))
    assert line == "report: /proc/none: No such file or directory"


@pytest.mark.parametrize("value", ["inf", "nan", "9" * 400])
@pytest.mark.parametrize(
    ("stage", "option"),
    [("translation", "poll_seconds"), ("rank_responses", "score_temperature"),
     ("generate_responses", "temperature"), ("train_reward_model", "learning_rate")],
)  # fmt: skip
def test_no_number_of_a_setting_is_infinite(stage, option, value, monkeypatch):
    with pytest.raises(SystemExit, match=f"setting {option} .*finite number"):
        settings_of(stage).from_command_line([f"--{option.replace('_', '-')}={value}"])


# ---- what a stage says


def test_json_is_the_summary_of_the_run_and_nothing_else(tmp_path):
    rows = [{"id": f"p{k}", "prompt": f"{k}?", "chosen": "yes", "rejected": "no"} for k in range(5)]
    write_jsonl(tmp_path / "mine.jsonl", [*rows, {"id": "bad"}])
    options = ["--input", "mine.jsonl", "--output", "items"]
    for _ in range(2):  # the second finds it finished
        done = run_stage("preprocess_dataset", *options, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        meta = json.loads((tmp_path / told["meta"]).read_text(encoding="utf-8"))
        assert told["counts"] == meta["counts"] and told["counts"]["left_out"] == {"bad_row": 1}
        assert not {"settings", "fingerprint", "libraries"} & set(told)


def test_quiet_says_nothing_and_an_error_is_said_all_the_same(tmp_path):
    write_jsonl(
        tmp_path / "mine.jsonl", [{"id": "p", "prompt": "?", "chosen": "yes", "rejected": "no"}]
    )
    options = ["--input", "mine.jsonl", "--output", "items"]
    done = run_stage("preprocess_dataset", *options, "--quiet", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    options[1] = "other.jsonl"
    for how in ("--quiet", "--json"):
        failed = run_stage("preprocess_dataset", *options, how, cwd=tmp_path)
        assert failed.stdout == "" and "other.jsonl" in sentence(failed)
