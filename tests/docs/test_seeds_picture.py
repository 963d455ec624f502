"""The picture of several seeds beside each other."""

import json
from pathlib import Path

import pytest

from memfactory.evaluation.results import DatasetResult, EvalHistory, MetricResult
from scripts.seeds_picture import main, scores_of, seed_of


def write_run(folder: Path, seed: int, means: dict[int, float]) -> Path:
    """The run folder of a training with `seed`: its config, rewards, and a mean score by evaluated step."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "reward": n / 4}) + "\n" for n in (1, 2, 3)))
    history = EvalHistory()
    for step, mean in means.items():
        result = MetricResult(mean, 0.05, 20, 2, 0)
        history.add(step, {"held_out": DatasetResult({"em": result}, 20, 2, 0.0, "hash", {"em": {"0": mean}})})
    history.save(folder / "eval.json")
    return folder


def test_every_run_is_drawn_by_its_seed_with_its_interval(tmp_path, capsys):
    runs = [write_run(tmp_path / f"run-{seed}", seed, {0: 0.2, 3: 0.6}) for seed in (0, 7)]
    assert [seed_of(run) for run in runs] == ["seed 0", "seed 7"]
    mean, low, high = scores_of(runs[1], "held_out", "em")[3]
    assert low < mean == 0.6 < high
    output = tmp_path / "pictures" / "seeds.png"
    main([*map(str, runs), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    one = tmp_path / "one.png"
    main([str(runs[0]), "--output", str(one)])
    assert output.read_bytes().startswith(b"\x89PNG") and output.read_bytes() != one.read_bytes()


def test_a_run_without_the_metric_is_named(tmp_path):
    run = write_run(tmp_path / "run", 0, {0: 0.2})
    with pytest.raises(SystemExit, match=r"run has no evaluation of f1 on held_out"):
        main([str(run), "--metric", "f1", "--output", str(tmp_path / "seeds.png")])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*nothing"):
        main([str(tmp_path / "nothing"), "--output", str(tmp_path / "seeds.png")])
