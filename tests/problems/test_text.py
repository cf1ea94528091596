"""Texts as windows of characters, and the transformers that foresee the next one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import DataError, InputError
from twophase.losses import next_character
from twophase.problems import gpt, text
from twophase.problems.networks import parameter_count
from twophase.problems.problem import ImageProblem, TextProblem, named
from twophase.settings import from_dict


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("äbc" * 100, encoding="utf-8")
    return path


def test_the_text_that_ships_with_python_is_english():
    corpus = text.read("topics")
    decoded = "".join(corpus.characters[n] for n in corpus.numbers[:20_000].tolist())
    assert len(corpus.numbers) > 300_000 and " the " in decoded
    assert corpus.characters == "".join(sorted(set(corpus.characters)))
    assert corpus.numbers.max() == len(corpus.characters) - 1


def test_targets_are_one_character_later(book):
    data = text.load(str(book), 7)
    assert data.classes == 3 and data.name == "book.txt"
    for part, length in ((data.train, 270), (data.validation, 30)):
        assert part.inputs.shape == part.targets.shape == ((length - 1) // 7, 7)
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
        assert torch.equal(part.inputs[1:, 0], part.targets[:-1, -1])
    assert data.train.inputs[0].tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert data.train.inputs.dtype == torch.int64


@given(context=st.integers(1, 40), length=st.integers(2, 2000))
def test_windows_are_the_text_without_its_rest(context, length):
    numbers = torch.arange(length)
    windows = text._windows(numbers, context)
    count = (length - 1) // context
    assert windows.shape == (count, context + 1)
    assert torch.equal(windows[:, :-1].flatten(), numbers[: count * context])


@given(context=st.integers(1, 200))
def test_the_shortest_text_that_the_message_names_is_enough(context):
    for length, enough in ((text._least(context), True), (8 * context, False)):
        cut = round(0.9 * length)
        parts = torch.arange(length).tensor_split([cut])
        assert all(len(text._windows(part, context)) > 0 for part in parts) is enough


def test_subsets_are_drawn_from_the_seed_and_nested(book):
    big, small = (text.load(str(book), 7, train_examples=n, seed=3).train for n in (20, 8))
    rows = {tuple(row) for row in big.inputs.tolist()}
    assert len(big) == 20 and len(small) == 8
    assert all(tuple(row) in rows for row in small.inputs.tolist())
    again = text.load(str(book), 7, train_examples=8, seed=3).train
    assert torch.equal(again.inputs, small.inputs)
    assert len(text.load(str(book), 7, validation_examples=2).validation) == 2


def test_what_is_wrong_with_a_text_is_one_line(tmp_path, book):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "same.txt").write_text("a" * 5000)
    with pytest.raises(DataError, match=r"latin.txt is not UTF-8 \(byte 3\)"):
        text.read(str(tmp_path / "latin.txt"))
    with pytest.raises(DataError, match="nowhere.txt cannot be read"):
        text.read("nowhere.txt")
    with pytest.raises(InputError, match="two different characters"):
        text.read(str(tmp_path / "same.txt"))
    with pytest.raises(InputError, match="one of 300 characters.*at least 510"):
        text.load(str(book), 50)
    for arguments in (dict(train_examples=10_000), dict(validation_examples=0)):
        with pytest.raises(InputError, match="_examples: "):
            text.load(str(book), 7, **arguments)
    with pytest.raises(InputError, match="^context: 0"):
        text.load(str(book), 0)


def test_relative_paths_are_looked_for_in_the_data_folder(book, monkeypatch):
    monkeypatch.chdir("/")
    assert len(text.read("book.txt", book.parent).numbers) == 300


@pytest.mark.parametrize("name", gpt.GPT_MODELS)
def test_sizes_are_what_they_are_called(name):
    if name == "gpt-10m":
        pytest.skip("forty megabytes; the formula is the same")
    model = gpt.build(name, 100, 64, seed=0)
    millions = {"k": 1e3, "m": 1e6}
    called = float(name[4:-1]) * millions[name[-1]]
    assert abs(parameter_count(model) / called - 1) < 0.15


def test_a_position_sees_nothing_that_comes_later():
    model = gpt.build("gpt-10k", 30, 16, seed=0).double()
    numbers = torch.randint(30, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = numbers.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 30
    before, after = model(numbers), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])
    torch.testing.assert_close(model(numbers[:, :5]), before[:, :5])


def test_it_begins_with_the_entropy_of_equal_characters():
    model = gpt.build("gpt-50k", 90, 32, seed=0)
    numbers = torch.randint(90, (8, 33), generator=torch.Generator().manual_seed(0))
    loss = next_character(model(numbers[:, :-1]), numbers[:, 1:])
    assert loss.item() == pytest.approx(math.log(90), rel=0.01)
    outputs = model(numbers[:, :-1])
    by_hand = -outputs.log_softmax(-1).gather(-1, numbers[:, 1:, None]).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_the_same_seed_gives_the_same_network():
    one, two, other = (gpt.build("gpt-10k", 30, 16, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_problem_is_named_by_its_source(book):
    book.write_text("abc" * 300)
    problem = named(str(book), None, 3)
    assert problem == TextProblem(str(book), train_examples=3)
    assert from_dict(problem.to_dict()) == problem
    assert problem.name == "book gpt-50k"
    task = problem.load(0, "float64", torch.device("cpu"), None)
    assert len(task.data.train) == 3
    assert next(task.model.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named("topics", "vgg5-max-relu"), "^model: 'vgg5-max-relu'.* gpt-50k"),
        (lambda: named("digits", "gpt-50k"), "^model: 'gpt-50k'"),
        (lambda: TextProblem("nowhere"), "^text: 'nowhere'"),
        (lambda: TextProblem(context=0), "^context: 0"),
        (lambda: TextProblem(train_examples=0), "^train_examples: 0"),
        (lambda: ImageProblem("topics"), "^dataset: 'topics'"),
        (lambda: named("topicz"), r"^problem: 'topicz'.*did you mean 'topics'"),
    ],
)
def test_combinations_that_cannot_be_are_one_line(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_it_trains_in_both_phases(tmp_path):
    import twophase as tp

    path = tmp_path / "abc.txt"
    path.write_text("the cat sat on the mat. " * 60)
    task = TextProblem(str(path), "gpt-10k", context=16).load(
        0, "float32", torch.device("cpu"), None
    )
    adam = tp.AdamSettings(3e-3, 16)
    result = tp.fit(task.model, task.data, epochs=16, switch=8, adam=adam, loss=task.loss)
    losses = result.history.train_loss
    assert result.history.phase.iloc[-1] == "second" and losses.iloc[-1] < 0.9 * losses.iloc[7]
    assert result.history.validation_loss.notna().all()
