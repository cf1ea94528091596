"""Progress: items pass unchanged, the file is renewed seldom and can always be read."""

import io
import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twophase.experiments import progress
from twophase.experiments.progress import (
    PROGRESS_VARIABLE,
    Progress,
    read_progress,
    show_status,
    track,
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_VARIABLE, str(path))
    return path


@given(st.lists(st.integers()))
def test_items_pass_unchanged(items):
    assert list(track(items)) == items
    assert list(track(iter(items), total=len(items))) == items


def test_the_file_tells_how_far_the_loop_is(file):
    assert read_progress(file) is None
    loop = track(["a", "b", "c"], label="adam")
    next(loop)
    assert read_progress(file) == Progress("adam", 0, 3, 0.0)
    assert list(loop) == ["b", "c"]
    state = read_progress(file)
    assert (state.label, state.done, state.total) == ("adam", 3, 3)
    assert state.elapsed >= 0
    assert [path.name for path in file.parent.iterdir()] == ["progress.json"]


def test_a_loop_without_a_length_has_no_total(file):
    list(track(iter("abc")))
    assert read_progress(file).total is None
    assert read_progress(file).left is None


def test_the_file_is_written_at_most_five_times_a_second(file, monkeypatch):
    written = []
    replace = progress.os.replace

    def recorded(source, target):
        written.append(time.monotonic())
        replace(source, target)

    monkeypatch.setattr(progress.os, "replace", recorded)
    for _ in track(range(100)):
        time.sleep(0.01)
    first, *middle, _ = written
    assert all(after - before > 0.15 for before, after in pairwise([first, *middle]))
    assert len(middle) >= 2
    assert read_progress(file).done == 100, "the last state is written in any case"


def test_an_interrupted_loop_leaves_its_last_state(file):
    with pytest.raises(ZeroDivisionError):
        for item in track([1, 0], label="cg"):
            1 / item
    assert read_progress(file).done == 1


def test_nothing_is_printed_where_the_file_is_written(file, capsys):
    list(track(range(3)))
    assert capsys.readouterr() == ("", "")


def test_nothing_is_printed_where_nobody_looks(capsys):
    list(track(range(3)))
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    list(track(range(4), label="adam"))
    assert "adam" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert "<" in terminal.getvalue(), "elapsed<left"


def test_a_folder_that_vanishes_does_not_end_the_loop(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "gone" / "progress.json"))
    assert list(track(range(3))) == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"label": "x"}', '{"other": 1}'])
def test_a_file_that_is_no_progress_reads_as_none(tmp_path, text):
    path = tmp_path / "progress.json"
    path.write_text(text)
    assert read_progress(path) is None


def test_the_file_is_one_line_of_json(file):
    list(track(range(2), label="adam"))
    (line,) = file.read_text().splitlines()
    assert json.loads(line).keys() == {"label", "done", "total", "elapsed"}


@given(st.integers(1, 1000), st.integers(0, 1000), st.floats(0, 1e6))
def test_time_left_is_proportional(done, more, elapsed):
    left = Progress("", done, done + more, elapsed).left
    assert left == pytest.approx(elapsed * more / done)


def test_a_terminal_shows_one_line_that_changes():
    terminal = Terminal()
    statuses = iter(["first", "second", "x" * 1000, *["last"] * 1000])
    with show_status(lambda: next(statuses), terminal) as say:
        deadline = time.monotonic() + 20
        while "xxx" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        say("done")
    text = terminal.getvalue()
    assert text.index("first") < text.index("second") < text.index("xxx") < text.index("done\n")
    assert text.count("\n") == 1, "the status never begins a new line"
    assert max(len(part) for part in text.split("\r")) < 1000, "it is cut to the terminal's width"


def test_a_closed_stream_does_not_end_the_work():
    stream = io.StringIO()
    with show_status(lambda: "status", stream) as say:
        stream.close()
        say("done")


def test_elsewhere_each_status_is_a_line():
    stream = io.StringIO()
    with show_status(lambda: "half way", stream) as say:
        say("finished")
    assert stream.getvalue() == "half way\nfinished\n"


def test_time_left_is_not_known_before_the_first_step():
    assert Progress("adam", done=0, total=40, elapsed=0.0).left is None
