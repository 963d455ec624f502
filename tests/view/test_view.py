"""The self-contained page of a run."""

import json
import re

import pytest
from pages import PageReader

from memfactory.errors import ConfigError
from memfactory.transcripts import write_transcripts
from memfactory.types import Group, Message, Reply, Reward, Task, Tokens, Trajectory, Turn
from memfactory.view import write_view
from memfactory.view.episodes import spread

HOSTILE = "</script><img src=x onerror=alert(1)>{{ page }}"


def write_run(folder, steps, config="seed: 7\n"):
    reply = Reply("</script><b>ü</b>", "stop", Tokens((1,), (2,), (-0.5,)))
    trajectory = Trajectory(0, (Turn("answer", (Message("user", "Who?"),), reply, True),), "Ana", Reward(1.0))
    for step in range(1, steps + 1):
        write_transcripts(folder, step, [Group(Task("t1", "Who?", ("Ana",)), (trajectory,))], [{"answer": [0.5]}])
    rows = [{"step": step, "reward": 0.5} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(config)


def test_the_page_holds_curves_transcripts_and_the_config(tmp_path):
    write_run(tmp_path, 3)
    target = write_view(tmp_path)
    assert target == tmp_path / "view.html"
    page = PageReader(target)
    assert page.figures == ["reward"]
    assert [section["title"] for section in page.sections] == ["1", "2", "3"]
    assert page.episodes()[0]["turns"][0]["reply"] == "</script><b>ü</b>"
    assert page.config == "seed: 7\n"


def test_the_page_requests_nothing_from_the_network(tmp_path):
    write_run(tmp_path, 1)
    page = write_view(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"https?://", page) == []
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "default-src 'none'" in page


def test_no_text_can_end_the_script_or_become_a_tag(tmp_path):
    run = tmp_path / "<img src=x>"
    run.mkdir()
    write_run(run, 1, config=HOSTILE)
    page = write_view(run)
    html = page.read_text(encoding="utf-8")
    assert html.count("</script>") == 1
    assert re.findall(r"<img (?!alt=\"\w+\" src=\"data:image/png;base64,)", html) == []
    assert PageReader(page).config == HOSTILE


def test_a_page_without_transcripts_has_no_script(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    html = write_view(tmp_path).read_text(encoding="utf-8")
    assert "There are no transcripts." in html and "<script>" not in html


def test_long_runs_are_thinned_out_evenly_from_first_to_last_step():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    # Places 0, 9/4, 18/4, 27/4 and 9, rounded down.
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 9]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is neither a run folder"):
        write_view(tmp_path)
