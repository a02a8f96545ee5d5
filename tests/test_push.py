"""push.py, hub and uploads: what is uploaded, to whom it is visible, what never is, and a cut connection."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

import push
from prefpipe.files import DataError
from prefpipe.publish import uploads
from tests.examples import ROOT, run_stage, sentence, write_jsonl
from tests.hub_stand_in import TOKEN, Hub, open_hub

KEY = "sk-proj-" + "aB3dE6gH9jK2mN5pQ8sT"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.jsonl
  - split: validation
    path: validation.parquet
---
# A set
```python
name = "out"  # this folder, or its name on the hub
```
"""


@pytest.fixture
def hub(monkeypatch):
    with open_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    write_jsonl(folder / "train.jsonl", [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}] * 9)
    rows = pyarrow.table({"prompt": ["2+3?"], "chosen": ["5"], "rejected": ["4"]})
    pyarrow.parquet.write_table(rows, folder / "validation.parquet")
    (folder / "README.md").write_text(CARD)
    (folder / "x.meta.json").write_text('{"closing_line": "", "fingerprint": {}}')
    write_jsonl(folder / "x.rejects.jsonl", [{"id": "1", "reason": "tie"}])
    write_jsonl(folder / "mix.jsonl", [{"id": "1"}])
    write_jsonl(folder / ".x.partial.jsonl", [{"id": "1"}])
    (folder / "run.log").write_text("a log")
    (folder / "checkpoints/checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints/checkpoint-1/model.safetensors").write_bytes(b"0" * 99)
    return folder


def go(folder: Path, **settings) -> None:
    push.main(push.Settings(folder=folder, repository="me/set", **settings))


def announce(hub: Hub, folder: Path) -> None:
    """Tell the stand-in which file has which hash, so that it can cut one by its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            hub.names[hashlib.sha256(path.read_bytes()).hexdigest()] = path.name


def test_what_the_card_names_is_uploaded_and_nothing_else_and_it_is_private(hub, folder, capsys):
    go(folder)
    repository = hub.repositories["datasets/me/set"]
    assert repository["private"] is True
    files = hub.files("datasets/me/set")
    assert set(files) == {".gitattributes", "README.md", "train.jsonl", "validation.parquet"}
    for name in ("train.jsonl", "validation.parquet"):
        assert files[name] == (folder / name).read_bytes()
    assert b'name = "me/set"  # this folder' in files["README.md"]
    assert 'name = "out"' in (folder / "README.md").read_text()  # ours stays
    said = capsys.readouterr().out
    size = (folder / "train.jsonl").stat().st_size
    assert any(line.split() == ["train.jsonl", f"{size:,}"] for line in said.split("\n"))
    for name, why in {
        "x.meta.json": "of this machine", "x.rejects.jsonl": "rejects", "mix.jsonl": "not in the card",
        ".x.partial.jsonl": "hidden", "run.log": "a log", "checkpoints/": "a checkpoint",
    }.items():  # fmt: skip
        assert f"stays here: {name}: {why}\n" in said
    assert "(private): 3 files uploaded, 0 were there" in said


def test_a_second_run_uploads_what_is_new_and_says_what_is_only_there(hub, folder, capsys):
    go(folder)
    hub.put.clear()
    go(folder)
    assert hub.put == [] and hub.asked["commit"] == 1 and hub.asked["create"] == 1
    assert "0 files uploaded, 3 were there" in capsys.readouterr().out
    hub.files("datasets/me/set")["old.jsonl"] = b"{}\n"
    write_jsonl(folder / "train.jsonl", [{"prompt": "new", "chosen": "4", "rejected": "5"}])
    announce(hub, folder)
    go(folder)
    assert hub.put == ["train.jsonl"] and hub.asked["commit"] == 2
    said = capsys.readouterr().out
    assert "on the hub and not here, left as it is: old.jsonl" in said
    assert "1 files uploaded, 2 were there" in said


def test_a_cut_connection_is_a_sentence_and_the_next_run_sends_only_what_is_missing(hub, folder):
    announce(hub, folder)
    hub.cut = {"validation.parquet"}
    with pytest.raises(DataError) as error:
        go(folder)
    assert "the same command goes on" in str(error.value) and len(str(error.value)) < 300
    assert set(hub.files("datasets/me/set")) == {".gitattributes"}  # no half of it is to be seen
    assert hub.put == ["train.jsonl"]
    hub.cut = set()
    go(folder)
    assert hub.put == ["train.jsonl", "validation.parquet"]
    assert len(hub.files("datasets/me/set")) == 4


def test_a_commit_whose_reply_is_lost_is_found_by_the_next_run(hub, folder, capsys):
    hub.cut = {"commit"}
    with pytest.raises(DataError, match="the same command goes on"):
        go(folder)
    hub.cut = set()
    go(folder)
    assert hub.asked["commit"] == 1 and "3 were there" in capsys.readouterr().out


def test_public_is_only_what_is_asked_to_be_and_visibility_is_never_changed_unsaid(hub, folder):
    go(folder, public=True)
    assert hub.repositories["datasets/me/set"]["private"] is False
    with pytest.raises(DataError, match="is public on the hub, and this run is without --public"):
        go(folder)
    hub.repositories["datasets/me/set"]["private"] = True
    with pytest.raises(DataError, match="is private on the hub, and this run is with --public"):
        go(folder, public=True)


def test_a_dry_run_asks_nobody(hub, folder, capsys):
    go(folder, dry_run=True)
    assert not hub.asked and not hub.repositories
    assert "would be uploaded to the private dataset me/set" in capsys.readouterr().out


def test_who_is_not_logged_in_is_told_how(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong")
    with pytest.raises(DataError, match="log in with `hf auth login`, or set HF_TOKEN"):
        go(folder)
    assert not hub.repositories


@pytest.mark.parametrize("name", ["set", "me/a/b", "me/--x", "me/a b"])
def test_a_wrong_name_is_a_sentence(hub, folder, name):
    with pytest.raises(DataError, match="no name on the hub"):
        uploads.choose(folder, name)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "README.md").unlink(), "nothing is published without a card"),
        (lambda f: (f / "README.md").write_text("# words\n"), "has no front matter"),
        (lambda f: (f / "README.md").write_text("---\nconfigs: [\n---\n"), "front matter cannot be read"),
        (lambda f: (f / "README.md").write_text("---\ntags: [x]\n---\n"), "names no data files"),
        (lambda f: (f / "train.jsonl").unlink(), "name train.jsonl, and there is no such file"),
        # a glob of the card's own takes no rejects along
        (lambda f: (f / "README.md").write_text(CARD.replace("train.jsonl", "'*.jsonl'")), "which is"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
)  # fmt: skip
def test_without_a_card_that_fits_nothing_is_uploaded(folder, spoil, said):
    spoil(folder)
    with pytest.raises(DataError, match=said):
        uploads.choose(folder, "me/set")


def test_a_link_to_elsewhere_is_not_followed(folder, tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match="a link"):
        uploads.choose(folder, "me/set")


def test_a_run_that_is_not_finished_is_not_published(folder):
    card = CARD + "\n<!-- prefpipe: the card of train.jsonl, validation.parquet -->"
    (folder / "README.md").write_text(card)
    assert uploads.choose(folder, "me/set").kind == "dataset"
    (folder / "x.meta.json").unlink()
    with pytest.raises(DataError, match="its run is not finished"):
        uploads.choose(folder, "me/set")


@pytest.mark.parametrize("where", ["jsonl", "escaped", "parquet", "gz", "card", "own key", "token"])
def test_a_key_in_any_file_stops_it_all_and_is_not_printed(folder, monkeypatch, where):
    secret = KEY
    if where == "jsonl":
        write_jsonl(folder / "train.jsonl", [{"prompt": "a"}, {"prompt": f"my key: {KEY}."}])
        place = f"{folder / 'train.jsonl'}:2"
    elif where == "escaped":  # "\nsk-...": as JSON writes it, an n stands before it
        write_jsonl(folder / "train.jsonl", [{"prompt": f"my key:\n{KEY}"}])
        place = f"{folder / 'train.jsonl'}:1"
    elif where == "parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"prompt": ["a", "b"], "chosen": [[KEY], [KEY]]}),
            folder / "validation.parquet",
        )
        place = str(folder / "validation.parquet")
    elif where == "gz":
        with gzip.open(folder / "train.jsonl.gz", "wt") as file:
            file.write(json.dumps({"prompt": f"my key: {KEY}"}))
        (folder / "README.md").write_text(CARD.replace("train.jsonl", "train.jsonl.gz"))
        place = f"{folder / 'train.jsonl.gz'}:1"
    elif where == "card":
        (folder / "README.md").write_text(CARD + f"made with {KEY}\n")
        place = "README.md"
    else:
        secret = "correct horse battery" if where == "own key" else TOKEN
        name = "WANDB_API_KEY" if where == "own key" else "HF_TOKEN"
        monkeypatch.setenv(name, secret)
        write_jsonl(folder / "train.jsonl", [{"prompt": f"x{secret}x"}])
        place = str(folder / "train.jsonl")
    with pytest.raises(DataError) as error:
        uploads.check_no_key(uploads.choose(folder, "me/set"))
    assert str(error.value).startswith(place) and secret not in str(error.value)
    assert len(str(error.value).removeprefix(str(folder))) < 300


@pytest.mark.parametrize(
    "text", ["sk-" + "x" * 24, "task-oriented-programming-languages", "hf_hub_download", "sk-learn"]
)
def test_what_is_no_key_is_let_through(folder, text):
    write_jsonl(folder / "train.jsonl", [{"prompt": text}])
    uploads.check_no_key(uploads.choose(folder, "me/set"))


def test_of_a_model_what_loads_it_is_uploaded_and_not_the_rows_that_it_was_wrong_about(
    hub, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "embedded/model", folder)
    (folder / "README.md").write_text("---\npipeline_tag: text-classification\n---\n# A model\n")
    write_jsonl(folder / "disagreements.jsonl", [{"id": "1"}])
    (folder / "train_reward_model.meta.json").write_text(json.dumps({}))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/optimizer.pt").write_bytes(b"0")
    go(folder)
    files = set(hub.files("models/me/set"))
    assert files == {
        ".gitattributes", "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights"):
        uploads.choose(folder, "me/set")


def test_the_command_pushes_what_a_stage_made_and_says_so(hub, tmp_path):
    rows = [{"prompt": f"{n}+{n}?", "chosen": str(2 * n), "rejected": "no"} for n in range(30)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    made = run_stage(
        "preprocess_dataset", "--input", "mine.jsonl", "--output", "items", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    result = run_stage("push", "items", "me/items", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert f"{hub.url}/datasets/me/items (private): 3 files uploaded" in result.stdout
    assert "stays here: preprocess_dataset.rejects.jsonl: rejects" in result.stdout
    assert len(hub.files("datasets/me/items")) == 4 and TOKEN not in result.stdout + result.stderr
    offline = env | {"HF_HUB_OFFLINE": "1"}
    said = sentence(run_stage("push", "items", "me/items", cwd=tmp_path, env=offline))
    assert said == "push: HF_HUB_OFFLINE is set; unset it to push"


def test_of_a_model_what_loads_it_is_uploaded_whatever_else_stands_beside_it(tmp_path):
    kept = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "generation_config.json", "reward_format.json", "loss_curve.csv",
            "loss_curve.png", "reliability.png", "merges.txt", "model-00001-of-00002.safetensors",
            "model.safetensors.index.json"]  # fmt: skip
    stays = [
        "log.txt",
        "train_log.txt",
        "held_out.csv",
        "notes.md",
        "settings.json",
        "trainer_state.json",
    ]
    for name in [*kept, *stays]:
        (tmp_path / name).write_text("---\nlicense: mit\n---\n# A model\n")
    chosen = uploads.choose(tmp_path, "me/model")
    assert chosen.kind == "model" and set(chosen.files) == set(kept)
    assert set(chosen.left_out) == set(stays)


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("*.jsonl", ["train.jsonl"]),
        ("data/*.jsonl", ["data/a.jsonl"]),
        ("data/**", ["data/a.jsonl", "data/x/b.jsonl"]),
        ("**/b.jsonl", ["data/x/b.jsonl"]),
    ],
)
def test_a_glob_of_the_card_names_what_it_names_from_the_folder_on(tmp_path, pattern, files):
    for name in ("train.jsonl", "data/a.jsonl", "data/x/b.jsonl"):
        write_jsonl(tmp_path / name, [{"id": "1"}])
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- data_files: '{pattern}'\n---\n# A set\n")
    assert set(uploads.choose(tmp_path, "me/set").files) == {"README.md", *files}


@pytest.mark.parametrize("pattern", ["", "/etc/passwd", "../other.jsonl"])
def test_a_path_of_the_card_that_is_none_of_the_folder_is_a_sentence(tmp_path, pattern):
    write_jsonl(tmp_path / "out/train.jsonl", [{"id": "1"}])
    write_jsonl(tmp_path / "other.jsonl", [{"id": "1"}])
    card = tmp_path / "out/README.md"
    card.write_text(f"---\nconfigs:\n- data_files: '{pattern}'\n---\n# A set\n")
    with pytest.raises(DataError, match=r"README\.md: "):
        uploads.choose(tmp_path / "out", "me/set")
