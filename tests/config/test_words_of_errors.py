"""Messages say what is allowed, of how many, and keep their punctuation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.redaction import redacted_message
from memfactory.trainers.diagnosis import Facts, Settings, diagnose


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("project", "a b/c$", "expected text of letters, digits and _ - + . only; given 'a b/c$'"),
        ("workspace", "my.team", "expected text of letters, digits and _ - only; given 'my.team'"),
        ("workspace", "x" * 26, "expected text of at most 25 characters"),
    ],
)
def test_a_name_that_swanlab_refuses_is_told_with_the_rule(key, value, told):
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", [f"trackers=[{{kind: swanlab, {key}: {value!r}}}]"])
    assert told in str(caught.value)


def test_the_diagnosis_counts_groups_and_not_their_size():
    flat = Facts(5, episodes=8, lowest=0.0, highest=0.0)
    for groups, told in (
        (2, "none of the 2 groups had rewards that differ"),
        (1, "the one group did not have rewards"),
    ):
        said = diagnose(flat + Facts(groups=groups), Settings(4))
        assert said is not None and said.startswith(told)


@pytest.mark.parametrize("value", ["***", "X", "hunter2hunter2", '"my words"', "[redacted]"])
def test_a_redacted_value_keeps_the_colon_behind_it(value):
    said = redacted_message(f"command line: engine.api_key={value}: a config holds no secrets")
    assert said.endswith(": a config holds no secrets")
    assert "hunter2" not in said and "my words" not in said


def test_commands_that_tests_start_trust_in_a_file_of_the_tests():
    code = "from memfactory.plugins.trust import trust_file; print(trust_file())"
    variables = {name: value for name, value in os.environ.items() if name != "MEMFACTORY_TRUSTED"}
    for environment in (None, variables):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
        assert Path.home() not in Path(done.stdout).parents, done.stderr
