"""prefpipe.training.curve: a trainer's log as a table and a picture."""

from prefpipe.training.curve import curve_rows, write_csv, write_curve


def test_a_curve_has_one_row_a_step_and_no_times(tmp_path):
    log = [
        {"loss": 0.7, "learning_rate": 1e-4, "rewards/margins": 0.0, "epoch": 0.5, "step": 1},
        {"loss": 0.6, "learning_rate": 5e-5, "rewards/margins": 0.1, "epoch": 1.0, "step": 2},
        {"eval_loss": 0.65, "eval_runtime": 1.5, "eval_samples_per_second": 9, "epoch": 1.0, "step": 2},
        {"train_runtime": 3.0, "train_loss": 0.65, "total_flos": 0.0, "epoch": 1.0, "step": 2},
    ]  # fmt: skip
    rows = curve_rows(log)
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["eval_loss"] == 0.65
    write_csv(tmp_path / "curve.csv", log)
    assert (tmp_path / "curve.csv").read_text() == (
        "step,epoch,loss,eval_loss,learning_rate,rewards/margins\n"
        "1,0.5,0.7,,0.0001,0.0\n"
        "2,1.0,0.6,0.65,5e-05,0.1\n"
    )


def test_the_picture_stands_beside_the_table_also_where_a_curve_has_no_point(tmp_path):
    log = [{"loss": 0.7, "epoch": 1.0, "step": 1}, {"loss": 0.6, "epoch": 2.0, "step": 2}]
    panels = {"loss": ("loss", "eval_loss"), "margin": ("margin", "eval_margin")}
    assert write_curve(tmp_path, log, panels, "a title") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"loss_curve.csv", "loss_curve.png"}
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
