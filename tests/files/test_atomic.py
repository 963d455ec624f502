"""Files and folders that are replaced atomically."""

import os

import pytest

from memfactory.files.atomic import NotAFileError, atomic_file, write_text
from memfactory.files.folders import atomic_folder, damage


def test_a_file_is_replaced_whole_and_leaves_no_working_file(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_text(path, "first")
    write_text(path, "zweite Zeile ü\n")
    assert path.read_bytes() == "zweite Zeile ü\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_an_error_while_writing_keeps_the_old_content(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "ours")
    assert (tmp_path / "target").read_text() == "theirs"
    assert (tmp_path / "link").read_text() == "ours" and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_or_a_pipe_is_not_replaced(tmp_path, linked):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(
        NotAFileError, match=f"{path} should be a file to write, but is a device, a pipe or a socket"
    ) as raised:
        write_text(path, "ours")
    assert raised.value.strerror == "it is a device, a pipe or a socket"
    assert path.is_fifo()


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "step-1"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "state.json").write_text("{}")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as folder:
        (folder / "state.json").write_text("{}")
        assert not target.exists()
    assert damage(target) is None
    (target / "state.json").write_text("[]")
    assert damage(target) == "its file state.json has changed (its SHA-256 differs)"


def test_the_files_of_a_folder_are_for_whom_the_mask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "final") as folder:
            (folder / "model.safetensors").touch(mode=0o600)  # as safetensors makes it
    finally:
        os.umask(before)
    # 0666 without what 027 masks.
    assert (tmp_path / "final" / "model.safetensors").stat().st_mode & 0o777 == 0o640
