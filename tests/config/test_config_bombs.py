"""Configs made to break their reader: nesting, aliases, tags, references that multiply. Each is an error at once."""

import time

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError

BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(folder, text, *overrides):
    """The problems of a config, found within seconds on a busy machine."""
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", overrides)
    assert time.process_time() - begun < 5
    return list(caught.value.problems)


def nested(depth, kind):
    return {
        "map": "{a: " * depth + "1" + "}" * depth,
        "list": "[" * depth + "1" + "]" * depth,
        "mixed": "{a: [" * (depth // 2) + "1" + "]}" * (depth // 2),
    }[kind]


@pytest.mark.parametrize("kind", ["map", "list", "mixed"])
@pytest.mark.parametrize("depth", [34, 80, 1500])
@pytest.mark.parametrize("place", ["agent", "data", "engines", "nothing"])
def test_deep_nesting_is_an_error_wherever_it_stands(folder, depth, kind, place):
    text = f"{BASE}{place}: {nested(depth, kind)}\n"
    if place in ("agent", "env"):
        text = text.replace(f"{place}: {'memory_agent' if place == 'agent' else 'longcontext'}\n", "", 1)
    assert any("nested too deeply" in problem for problem in problems_of(folder, text))


@pytest.mark.parametrize("depth", [34, 80, 1500])
def test_deep_nesting_in_a_part_and_on_the_command_line_is_an_error(folder, depth):
    (folder / "configs" / "agents").mkdir(parents=True)
    (folder / "configs" / "agents" / "deep.yaml").write_text(f"name: memory_agent\nx: {nested(depth, 'map')}\n")
    assert "nested too deeply" in problems_of(folder, BASE.replace("memory_agent", "deep"))[0]
    assert "nested too deeply" in problems_of(folder, BASE, f"agent.x={nested(depth, 'list')}")[0]
    assert "nested too deeply" in problems_of(folder, BASE, ".".join("a" * depth) + "=1")[0]


@pytest.mark.parametrize("depth", [10, 25, 31])
def test_nesting_below_the_limit_is_told_as_any_mistake(folder, depth):
    assert "nothing: unknown key" in problems_of(folder, f"{BASE}nothing: {nested(depth, 'map')}\n")[0]
    told = problems_of(folder, BASE, ".".join(["nothing", *"a" * depth]) + f"={nested(depth, 'list')}")
    assert any("nothing" in problem for problem in told)


@pytest.mark.parametrize("length", [14, 30, 100])
@pytest.mark.parametrize(
    "form", ["${x.%s}${x.%s}", "[${x.%s}, ${x.%s}]", "{a: '${x.%s}', b: '${x.%s}'}", "${.%s}${.%s}"]
)
def test_references_that_double_each_other_are_an_error(folder, length, form):
    lines = ["x:", "  k0: aaaaaaaaaa"]
    for number in range(length):
        below = f"k{number}"
        value = form % (below, below)
        if form.startswith("{") or form.startswith("["):
            value = value.replace("[${", "['${").replace("}, ${", "}', '${").replace("}]", "}']")
        lines.append(f"  k{number + 1}: {value if value[0] in '[{' else repr(value)}")
    told = problems_of(folder, BASE + "\n".join(lines) + "\n")
    assert any("lead to too many other values" in problem for problem in told), told


def test_long_texts_that_are_repeated_are_an_error(folder):
    text = f"x: {{a: {'b' * 50_000}, c: '{'${x.a}' * 50}'}}\n"
    assert "lead to too many other values" in problems_of(folder, BASE + text)[0]


def test_references_of_a_usual_size_resolve(folder):
    text = BASE.replace("model: tiny", "model: {path: tiny}") + "seed: 3\neval: {seed: '${seed}'}\n"
    text += "engines:\n" + "".join(
        f"  e{n}: {{kind: hf, model: {{path: '${{model.path}}', adapter: '${{.path}}'}}}}\n" for n in range(20)
    )
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    config = load_config("x.yaml").config
    assert config.eval.seed == 3 and config.engines["e19"].model.adapter == "tiny"


def test_a_circle_of_references_is_an_error(folder):
    told = problems_of(folder, BASE + "seed: ${eval.seed}\neval: {seed: '${seed}'}\n")
    assert any("seed" in problem for problem in told)


@pytest.mark.parametrize(
    "value",
    [
        "${oc.decode:'${seed}'}",
        "${oc.select:seed}",
        "${oc.create:'{a: 1}'}",
        "${oc.dict.keys:model}",
        "${oc.deprecated:seed}",
        "${nothing:3}",
        "${${model.path}}",
        "${model.${seed}}",
        "${oc.${seed}:HOME}",
    ],
)
def test_only_keys_and_the_environment_can_be_referred_to(folder, value):
    told = problems_of(folder, f'{BASE}seed: 1\noutput: "{value}"\n')
    assert len(told) == 1 and "x.yaml:5: output: " in told[0] and "is not supported" in told[0]


def test_a_default_of_the_environment_may_refer_to_a_key(folder, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    text = BASE + "seed: 4\noutput: '${oc.env:NOT_SET,run-${seed}}'\neval: {seed: '${oc.env:NOT_SET,${seed}}'}\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    config = load_config("x.yaml").config
    assert (config.output, config.eval.seed) == ("run-4", 4)


def aliases(levels, width):
    lines = ["x0: &x0 [a, b]"]
    for level in range(1, levels):
        lines.append(f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("levels", "width"), [(9, 9), (30, 2), (3, 90)])
def test_aliases_that_multiply_are_an_error(folder, levels, width):
    assert "those behind aliases (*) counted each time" in problems_of(folder, BASE + aliases(levels, width))[0]


def test_merges_that_multiply_are_an_error(folder):
    lines = ["x0: &x0 {a: 1}"]
    lines += [f"x{level}: &x{level} {{<<: [*x{level - 1}, *x{level - 1}]}}" for level in range(1, 30)]
    assert "counted each time" in problems_of(folder, BASE + "\n".join(lines) + "\n")[0]


def test_an_alias_of_itself_is_an_error(folder):
    assert "never end" in problems_of(folder, BASE + "x: &x [*x]\n")[0]


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!foo", "!!binary", "!!set"]
)
def test_tags_beyond_plain_yaml_are_an_error(folder, tag):
    told = problems_of(folder, f"{BASE}output: {tag} [echo]\n")
    assert "is not supported; write plain values" in told[0]


def test_thousands_of_mistakes_are_told_by_their_number(folder, capsys):
    text = BASE + "".join(f"wrong_{number}: 1\n" for number in range(3000))
    told = problems_of(folder, text)
    assert len(told) == 201 and told[-1] == "x.yaml: and 2800 more problems"
    assert run(["config", "validate", "x.yaml"]) == 2
    assert "Traceback" not in capsys.readouterr().err
