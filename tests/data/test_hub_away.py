"""A dataset of a hub that cannot be reached: its cache is read at once, and without one the error comes at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from memfactory.errors import DataError
from memfactory.model import hub
from memfactory.registry import DATASETS


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a hub that refuses connections, for libraries that are not in offline mode and have no cache."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(module, name, address)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub._away.cache_clear()
    return address


def hub_dataset(id: str, **options: object):
    return DATASETS.get("hub")(DATASETS.options("hub")(id=id, **options), Path())


def test_a_dataset_of_a_hub_that_is_away_is_refused_in_seconds(away):
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        hub_dataset("nobody/nothing").rows()
    # The retries of `datasets` take 23 seconds.
    assert time.monotonic() - start < 12
    assert f"'nobody/nothing' (split 'train') cannot be loaded: the hub cannot be reached ({away}: " in str(
        caught.value
    )
    assert "its cache has no such dataset. A local file is named by its path" in str(caught.value)
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_dataset_in_the_cache_needs_no_hub(away, tmp_path):
    rows = [{"input": "a"}, {"input": "b"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    made = tmp_path / "made"
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.json"), cache_dir=str(made))
    (arrow,) = made.rglob("json-train.arrow")
    # The place of a dataset `owner/name` that was fetched once.
    cached = tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / arrow.parent.name
    shutil.copytree(arrow.parent, cached)
    (cached / arrow.name).rename(cached / "name-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"dataset_name": "name"}
    info["splits"]["train"]["dataset_name"] = "name"
    (cached / "dataset_info.json").write_text(json.dumps(info))
    start = time.monotonic()
    assert [dict(row.values) for row in hub_dataset("owner/name").rows()] == rows
    assert time.monotonic() - start < 12
    with pytest.raises(DataError, match=r"\(split 'test'\) cannot be loaded: .*test"):
        hub_dataset("owner/name", split="test").rows()


def test_a_local_folder_asks_no_hub(away, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_obstacle", lambda _: pytest.fail("the hub was asked"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rows.json").write_text(json.dumps([{"input": "a"}]))
    assert len(hub_dataset(str(tmp_path / "folder")).rows()) == 1
