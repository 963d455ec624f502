"""One process writes a folder or a file at a time, and no lock outlives its process."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from memfactory.errors import MemFactoryError
from memfactory.files.locks import LOCK, InUseError, file_lock, folder_lock, new_folder

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom memfactory.files.locks import folder_lock\n"
    "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_folder_that_is_written_names_its_holder(tmp_path, holder):
    with pytest.raises(InUseError, match=f"{tmp_path} is being written by process {holder.pid} on .* since 20"):
        with folder_lock(tmp_path):
            pass


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with folder_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_process_cannot_hold_a_folder_twice(tmp_path):
    with folder_lock(tmp_path), pytest.raises(InUseError, match=f"process {os.getpid()} "), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_files_in_one_folder_are_locked_by_themselves(tmp_path):
    one, other = tmp_path / "made" / "a.jsonl", tmp_path / "made" / "b.jsonl"
    with file_lock(one), file_lock(other), pytest.raises(InUseError, match=r"a\.jsonl is being written"):
        with file_lock(one):
            pass
    assert list((tmp_path / "made").iterdir()) == []


def test_a_lock_file_of_another_content_is_no_obstacle(tmp_path):
    (tmp_path / LOCK).write_bytes(b"\xff{")
    with folder_lock(tmp_path), pytest.raises(InUseError, match="process"), folder_lock(tmp_path):
        pass


def test_a_lock_never_writes_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(MemFactoryError, match="symbolic links"), folder_lock(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_folders_made_at_once_are_all_different(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "runs", "a"), range(24)))
    assert {path.name for path in made} == {"a", *(f"a-{number}" for number in range(2, 25))}


def test_who_waits_never_holds_a_lock_file_that_was_removed(tmp_path):
    """Sixteen threads that take the lock again and again never count at the same time."""
    inside, seen = [], []

    def work(_):
        for _ in range(40):
            try:
                with folder_lock(tmp_path):
                    inside.append(1)
                    seen.append(len(inside))
                    inside.pop()
            except InUseError:
                pass

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert seen and set(seen) == {1}
