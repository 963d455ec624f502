"""The README's picture of memory before and after training."""

import json
import shutil
from pathlib import Path

import memfactory
from scripts.memory_picture import Answered, Shown, chunks, draw, scores

TINY = Path(memfactory.__file__).parent / "assets" / "tiny"


def test_the_chunks_of_the_picture_are_the_text_in_order(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "final")
    text = "Ada lives in Oslo. It was late. Boris keeps a moth."
    parts = chunks(tmp_path, text, tokens=5)
    assert len(parts) > 1
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")


def test_the_picture_has_the_scores_of_the_run(tmp_path: Path) -> None:
    metrics = [{"boxed_em": {"mean": mean, "standard_error": 0.02}} for mean in (0.25, 0.75)]
    history = {"evaluations": [{"datasets": {"held_out": {"metrics": metric}}} for metric in metrics]}
    (tmp_path / "eval.json").write_text(json.dumps(history))
    title = scores(tmp_path)
    assert "0.250 ± 0.020 before, 0.750 ± 0.020 after" in title
    wrong, right = Answered(("- Ada: nothing yet",), "Rome"), Answered(("- Ada lives in Oslo.",), "Oslo")
    shown = Shown("Where does Ada live?", "Oslo", ("Ada lives in Oslo.",), wrong, right)
    draw(shown, title, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
