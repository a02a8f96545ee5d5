"""prefpipe.training.checkpoints: a checkpoint is whole or it is not there."""

import json
import os
import shutil
import types

import pytest

from prefpipe.training import checkpoints
from prefpipe.training.checkpoints import Checkpoints

MARK = {"setting seed": "1", "input a": "x"}
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def opened(folder, *, mark=MARK, keep=2, wants_best=True, **more):
    return Checkpoints(
        folder, mark, keep=keep, wants_best=wants_best, **{"overwrite": False} | more
    )


def save(folder, step, best=None, seal=True):
    """What transformers leaves of a step, sealed as the trainer does it."""
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_bytes(f"{name} of {step}".encode())
    state = {"global_step": step, "best_global_step": best or step}
    (path / "trainer_state.json").write_text(json.dumps(state))
    if seal:
        opened_again = Checkpoints.__new__(Checkpoints)
        opened_again.mark = MARK
        opened_again.seal(path)
    return path


def test_without_a_checkpoint_nothing_is_made(tmp_path):
    assert opened(tmp_path / "model").stopped_at is None
    assert not (tmp_path / "model").exists()


def test_the_newest_is_by_step_whatever_the_clock_says(tmp_path):
    for step in (100, 20, 3):
        os.utime(save(tmp_path, step), (10**9 + step, 10**9 - step))
    found = opened(tmp_path, keep=3)
    assert found.stopped_at is not None and found.stopped_at.name == "checkpoint-100"
    save(tmp_path, 120)
    found.rotate(best=3)
    assert {p.name for p in found.folder.iterdir()} == {
        "checkpoint-120", "checkpoint-100", "checkpoint-20", "checkpoint-3",
    }  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:4])


def flip(path):
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", [*FILES, "whole"])
@pytest.mark.parametrize("damage", [cut, flip, os.truncate, os.remove])
def test_a_damaged_one_is_named_and_an_older_whole_one_taken(tmp_path, capfd, name, damage):
    save(tmp_path, 2)
    newest = save(tmp_path, 4, best=2)
    damage(newest / name, 0) if damage is os.truncate else damage(newest / name)
    found = opened(tmp_path)
    assert found.stopped_at is not None and found.stopped_at.name == "checkpoint-2"
    said = capfd.readouterr().err
    if name == "whole" and damage is os.remove:  # as a kill leaves it: nothing is the matter
        assert not said
    else:
        assert "checkpoint-4: not used" in said and "goes on from step 2" in said
    assert not newest.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_who_only_looks_passes_over_a_damaged_one_and_takes_none_away(tmp_path, capfd, overwrite):
    save(tmp_path, 10)
    cut(save(tmp_path, 20) / "optimizer.pt")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = opened(tmp_path, looks_only=True, overwrite=overwrite)
    assert found.stopped_at == (None if overwrite else tmp_path / "checkpoints/checkpoint-10")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capfd.readouterr().err == ""


def test_a_file_of_a_checkpoints_name_is_in_nobodys_way(tmp_path):
    save(tmp_path, 2)
    file = tmp_path / "checkpoints" / "checkpoint-4"
    file.write_text("x")
    found = opened(tmp_path)
    assert found.stopped_at is not None and found.stopped_at.name == "checkpoint-2"
    assert not file.exists()


def test_one_whose_best_is_gone_is_not_gone_on_from_where_the_best_is_wanted(tmp_path):
    for step, best in ((2, 2), (4, 4), (6, 4)):
        save(tmp_path, step, best)
    cut(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    last = opened(tmp_path, wants_best=False).stopped_at
    assert last is not None and last.name == "checkpoint-6"
    best = opened(tmp_path).stopped_at
    assert best is not None and best.name == "checkpoint-2"


def test_names_that_are_no_checkpoints_and_links_are_left_alone(tmp_path):
    save(tmp_path, 2)
    outside = save(tmp_path / "outside", 4, seal=False)
    folder = tmp_path / "checkpoints"
    for name in ("checkpoint-", "checkpoint-foo", "checkpoint-2x"):
        (folder / name).mkdir()
    (folder / "checkpoint-4").symlink_to(outside)
    assert str(opened(tmp_path).stopped_at).endswith("checkpoint-2")
    assert outside.exists() and (folder / "checkpoint-foo").exists()


def test_another_runs_checkpoint_is_refused_and_overwrite_takes_it_away(tmp_path):
    path = save(tmp_path, 2)
    with pytest.raises(SystemExit, match=r"other settings or input \(setting seed 1 -> 2"):
        opened(tmp_path, mark=MARK | {"setting seed": "2"})
    assert opened(tmp_path, mark=MARK | {"setting seed": "2"}, overwrite=True).stopped_at is None
    assert not path.exists()


def test_a_kill_at_any_moment_of_a_removal_leaves_none_that_looks_whole(tmp_path, monkeypatch):
    """The best one is older than the one that is being taken away."""
    for killed_after in range(len(FILES) + 1):
        folder = tmp_path / str(killed_after)
        for step, best in ((1, 1), (2, 1), (3, 1), (4, 1)):
            save(folder, step, best)
        found = opened(folder)

        def stop(path, left=killed_after):
            for name in sorted(os.listdir(path))[:left]:
                os.remove(path / name)
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            found.rotate(best=1)
        monkeypatch.undo()
        again = opened(folder)
        assert str(again.stopped_at).endswith("checkpoint-4")
        assert not (folder / "checkpoints" / "checkpoint-2").exists()
        shutil.rmtree(folder)


def test_what_nothing_could_go_on_from_is_not_sealed(tmp_path):
    path = save(tmp_path, 2, seal=False)
    (path / "scheduler.pt").unlink()
    with pytest.raises(Exception, match=r"scheduler\.pt was not written"):
        opened(tmp_path / "other").seal(path)
    assert not (path / "whole").exists()


@pytest.mark.parametrize(
    ("written", "is_fsdp", "words"),
    [
        ("optimizer_0/.metadata", False, "in FSDP's pieces, and would now be read in one piece"),
        ("optimizer.pt", True, "in one piece, and would now be read in FSDP's pieces"),
    ],
)
def test_a_launch_of_another_kind_does_not_go_on(tmp_path, written, is_fsdp, words):
    path = save(tmp_path, 4, seal=False)
    (path / "optimizer.pt").unlink()
    (path / written).parent.mkdir(exist_ok=True)
    (path / written).touch()
    opened(tmp_path / "other").seal(path)
    trainer = types.SimpleNamespace(is_fsdp_enabled=is_fsdp, is_deepspeed_enabled=False)
    with pytest.raises(SystemExit, match=words):
        opened(tmp_path).fit(trainer, "dpo_training", None)


def test_what_deepspeed_wrote_goes_on_on_as_many_devices_only(tmp_path):
    path = save(tmp_path, 4, seal=False)
    (path / "optimizer.pt").unlink()
    (path / "global_step4").mkdir()
    for rank in range(2):
        (path / f"global_step4/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    (path / "latest").touch()
    opened(tmp_path / "other").seal(path)
    trainer = types.SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=True)
    with pytest.raises(SystemExit, match="on 2 devices, and goes on on as many only, not on 1"):
        opened(tmp_path).fit(trainer, "dpo_training", None)
