"""A checkpoint that is not what was written is never used: the one before it is, and the run says so."""

import json
import os
import shutil

import pytest
import torch

from memfactory.cli.app import run
from memfactory.errors import MemFactoryError
from memfactory.files.checkpoints import checkpoints, newest_intact
from memfactory.files.folders import atomic_folder, check_folder, damage, write_marker
from memfactory.trainers.checkpoint import TrainState, save_checkpoint

CONFIG = """
model: {{path: {model}, cpu_threads: 1}}
agent: {{name: memory_agent, chunk_tokens: 200, memory_tokens: 4, answer_tokens: 4}}
env: longcontext
data: {{train: {{name: facts, rows: 4}}}}
train: {{name: grpo, steps: 2, prompts_per_step: 1, group_size: 2, save_every: 1, keep_checkpoints: 3{more}}}
trackers: []
"""


@pytest.fixture(scope="module", params=["", ", lora: {rank: 2}"], ids=["full", "lora"])
def trained(request, tmp_path_factory, small_model_path):
    """A folder with a finished run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "x.yaml").write_text(CONFIG.format(model=small_model_path, more=request.param))
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert run(["train", "x.yaml", "--output", "own"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "own" / "final")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


WAYS = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_damaged_file_is_found_before_anything_is_built(trained, tmp_path, way):
    own = trained / "own" / "checkpoints"
    files = [path.relative_to(own / "step-2") for path in (own / "step-2").rglob("*") if path.is_file()]
    assert len(files) >= 7
    for file in files:
        shutil.copytree(own, tmp_path / "checkpoints")
        WAYS[way](tmp_path / "checkpoints" / "step-2" / file)
        found, wrong = newest_intact(tmp_path / "checkpoints")
        assert found == tmp_path / "checkpoints" / "step-1"
        assert len(wrong) == 1 and (str(file) in wrong[0] or file.name == "COMPLETE")
        shutil.rmtree(tmp_path / "checkpoints")


def test_a_damaged_newest_checkpoint_leads_to_the_one_before(place, capsys, caplog):
    flip(next((place / "own/checkpoints/step-2").glob("*.safetensors")))
    assert run(["train", "x.yaml", "--output", "own", "--resume"]) == 0
    shown = capsys.readouterr()
    said = shown.err + caplog.text
    assert "step-2 cannot be used: its file " in said and "falling back to own/checkpoints/step-1" in said
    assert "Done" in shown.out
    assert damage(place / "own/checkpoints/step-2") is None and damage(place / "own/final") is None


def test_without_a_whole_checkpoint_nothing_is_trained(place, capsys):
    for step in (1, 2):
        (place / f"own/checkpoints/step-{step}/config.json").unlink(missing_ok=True)
        (place / f"own/checkpoints/step-{step}/state.json").write_text("{}")
    assert run(["train", "x.yaml", "--output", "own", "--resume"]) == 1
    shown = capsys.readouterr().err
    assert "none of the checkpoints in own/checkpoints can be used" in shown and "Traceback" not in shown


def test_a_named_checkpoint_that_is_damaged_is_refused(place, capsys):
    flip(place / "own/checkpoints/step-2/optimizer.pt")
    assert run(["train", "x.yaml", "--resume", "own/checkpoints/step-2"]) == 1
    shown = capsys.readouterr().err
    assert "its file optimizer.pt has changed" in shown and "intact are: step-1" in shown


def test_copies_and_links_beside_the_checkpoints_disturb_nothing(place):
    own = place / "own/checkpoints"
    shutil.copytree(own / "step-2", own / "step-2-best")
    shutil.copytree(own / "step-2", place / "elsewhere")
    (own / "step-7").symlink_to(place / "elsewhere")
    (own / "step-08").mkdir()
    assert [path.name for path in checkpoints(own)] == ["step-1", "step-2"]
    assert run(["train", "x.yaml", "--output", "own", "--resume", "train.steps=3", "train.keep_checkpoints=1"]) == 0
    assert sorted(path.name for path in own.iterdir()) == ["step-08", "step-2-best", "step-3", "step-7"]
    assert damage(place / "elsewhere") is None


def test_a_damaged_final_model_is_not_evaluated(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    flip(next((tmp_path / "own/final").glob("*.safetensors")))
    for source in ("own", "own/final"):
        for words in (["infer", source, "--question", "Who?"], ["eval", source, "--data", "facts", "--limit", "1"]):
            assert run(words) == 1
            assert "final is damaged or was changed: its file" in capsys.readouterr().err
    (tmp_path / "own/final/COMPLETE").unlink()
    assert run(["infer", "own", "--question", "Who?"]) == 0


def test_a_run_without_final_is_evaluated_at_its_newest_whole_checkpoint(place, capsys, caplog):
    flip(next((place / "own/checkpoints/step-2").glob("*.safetensors")))
    assert run(["infer", "own", "--question", "Who?"]) == 0
    assert "step-2 cannot be used" in capsys.readouterr().err + caplog.text


@pytest.mark.parametrize("name", ["state.json", "random.json", "optimizer.pt", "*.safetensors"])
def test_a_checkpoint_whose_marker_lacks_what_it_needs_is_damaged(place, capsys, caplog, name):
    newest = place / "own/checkpoints/step-2"
    next(newest.glob(name)).unlink()
    write_marker(newest)
    assert run(["train", "x.yaml", "--output", "own", "--resume"]) == 0
    said = capsys.readouterr().err + caplog.text
    assert "step-2 cannot be used: its file COMPLETE " in said and "falling back to own/checkpoints/step-1" in said
    assert name.strip("*.") in said and "Traceback" not in said


def test_a_checkpoint_whose_marker_lists_nothing_is_refused_by_name(place, capsys):
    (place / "own/checkpoints/step-2/COMPLETE").write_text('{"format": 1, "sha256": {}}')
    assert run(["train", "x.yaml", "--resume", "own/checkpoints/step-2"]) == 1
    shown = capsys.readouterr().err
    assert "its file COMPLETE does not list state.json; intact are: step-1" in shown and "Traceback" not in shown
    assert run(["infer", "own", "--question", "Who?"]) == 0


def test_a_file_in_the_place_of_the_transcripts_is_told(place, capsys):
    shutil.rmtree(place / "own/transcripts")
    (place / "own/transcripts").write_text("mine")
    assert run(["train", "x.yaml", "--output", "own", "--resume", "train.steps=3"]) == 1
    shown = capsys.readouterr().err
    assert "own/transcripts should be a folder to write into, but is a file" in shown and "Traceback" not in shown


def test_a_tensor_that_is_missing_is_never_made_up(place, capsys):
    from safetensors.torch import load_file, save_file

    weights = next((place / "own/checkpoints/step-2").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, weights, metadata={"format": "pt"})
    write_marker(place / "own/checkpoints/step-2")
    assert run(["train", "x.yaml", "--resume", "own/checkpoints/step-2", "train.steps=3"]) == 1
    shown = capsys.readouterr().err
    assert "they lack 1 tensors (such as " in shown and "Traceback" not in shown


def test_damaged_records_of_a_run_are_set_aside_and_it_goes_on(place, caplog):
    own = place / "own"
    lines = (own / "metrics.jsonl").read_text().splitlines(keepends=True)
    (own / "metrics.jsonl").write_text("{broken\n" + lines[0] + '["no object"]\n' + lines[1])
    (own / "environment.json").write_text('{"sessions": 3}')
    (own / "eval.json").write_bytes(b"\xff\xfe")
    assert run(["train", "x.yaml", "--output", "own", "--resume", "train.steps=3"]) == 0
    assert [json.loads(line)["step"] for line in (own / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert len(json.loads((own / "environment.json").read_text())["sessions"]) == 1
    kept = sorted(path.name for path in own.iterdir() if "damaged" in path.name)
    assert kept == ["environment.json.damaged", "eval.json.damaged", "metrics.jsonl.damaged"]
    assert (own / "metrics.jsonl.damaged").read_text().startswith("{broken")
    for name in kept:
        assert name in caplog.text
    assert "line 1 is not JSON" in caplog.text


def test_a_checkpoint_holds_no_pickled_code(trained):
    for file in (trained / "own").rglob("*"):
        if file.suffix in (".pt", ".bin", ".pth", ".pkl"):
            assert file.name == "optimizer.pt"
            torch.load(file, weights_only=True)


def test_a_disk_that_is_full_at_any_file_is_told_with_the_path(trained, tmp_path):
    source = trained / "own/checkpoints/step-2"
    names = [path.name for path in source.iterdir()]
    optimizer = torch.load(source / "optimizer.pt", weights_only=True)
    for name in names:

        def weights(working, name=name):
            # Whatever is written under this name goes to a device that is always full.
            (working / name).symlink_to("/dev/full")
            for path in source.iterdir():
                if path.name not in ("state.json", "random.json", "optimizer.pt", "COMPLETE"):
                    (working / path.name).write_bytes(path.read_bytes())

        if name in ("state.json", "random.json"):
            continue  # Written beside their place and renamed: a link is replaced.
        with pytest.raises(MemFactoryError, match="step-3 could not be written: No space left on device"):
            save_checkpoint(tmp_path, TrainState(step=3), save_weights=weights, optimizer=optimizer, keep=2)
        assert list(tmp_path.iterdir()) == []


def test_a_library_that_tells_of_a_full_disk_is_understood(tmp_path):
    for error in (Exception("No space left on device (os error 28)"), OSError(28, "No space left on device")):
        with pytest.raises(MemFactoryError, match=r"final could not be written: .*No space left"):
            with atomic_folder(tmp_path / "final"):
                raise error
    assert list(tmp_path.iterdir()) == []


def test_a_marker_of_another_shape_is_damage(tmp_path):
    for content in ("", "[]", "{}", '{"format": 9, "sha256": {}}', '{"format": 1, "sha256": []}', "[" * 100_000):
        (tmp_path / "COMPLETE").write_text(content)
        assert damage(tmp_path) is not None
        with pytest.raises(MemFactoryError, match="delete"):
            check_folder(tmp_path)
    (tmp_path / "COMPLETE").write_text(json.dumps({"format": 1, "sha256": {"a": "0"}}))
    assert damage(tmp_path) == "its file a is gone"


def test_a_link_in_the_place_of_a_folder_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").write_text("")
    (tmp_path / "final").symlink_to(tmp_path / "other")
    with atomic_folder(tmp_path / "final") as working:
        (working / "a").write_text("")
    assert (tmp_path / "other" / "kept").exists() and not (tmp_path / "final").is_symlink()
