"""The self-contained page of a run."""

import json
import re

import pytest

from memfactory.errors import ConfigError
from memfactory.transcripts import write_transcripts
from memfactory.types import Group, Message, Reply, Reward, Task, Tokens, Trajectory, Turn
from memfactory.view import write_view
from memfactory.view.episodes import spread


def write_run(folder, steps):
    reply = Reply("</script><b>ü</b>", "stop", Tokens((1,), (2,), (-0.5,)))
    trajectory = Trajectory(0, (Turn("answer", (Message("user", "Who?"),), reply, True),), "Ana", Reward(1.0))
    for step in range(1, steps + 1):
        write_transcripts(folder, step, [Group(Task("t1", "Who?", ("Ana",)), (trajectory,))], [{"answer": [0.5]}])
    rows = [{"step": step, "reward": 0.5} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text("seed: 7\n")


def data_of(page):
    return json.loads(re.search(r"^const page = (.*);$", page, re.MULTILINE).group(1))


def test_the_page_holds_curves_transcripts_and_the_config(tmp_path):
    write_run(tmp_path, 3)
    target = write_view(tmp_path)
    assert target == tmp_path / "view.html"
    data = data_of(target.read_text(encoding="utf-8"))
    assert set(data["figures"]) == {"reward"}
    assert [section["title"] for section in data["sections"]] == ["1", "2", "3"]
    assert data["sections"][0]["groups"][0]["attempts"][0]["turns"][0]["reply"] == "</script><b>ü</b>"
    assert data["config"] == "seed: 7\n"


def test_the_page_asks_nothing_of_the_network_and_no_text_can_end_its_script(tmp_path):
    write_run(tmp_path, 1)
    page = write_view(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"https?://", page) == []
    assert page.count("</script>") == 1


def test_long_runs_are_thinned_out_evenly_from_the_first_step_to_the_last():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    # Places 0, 9/4, 18/4, 27/4 and 9, rounded down.
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 9]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        write_view(tmp_path)
