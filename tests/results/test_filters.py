import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.filters import Filters, matches
from results.load import NothingMatches, load
from results.runs import fetch


@pytest.fixture(scope="module")
def several(shared_experiment):
    """Three runs of two sweeps, and one that failed."""
    for at, (model, pattern, parent) in enumerate(
        [("bert-mini", "4x1", "p"), ("bert-mini", "2:4", "q"), ("bert-base", "4x1", "q")]
    ):
        shared_experiment.log(group=str(at), model=model, pattern=pattern, parent=parent, counts={"ranks": at % 2})
    shared_experiment.log(model="distilbert", status="FAILED", group="f")
    return shared_experiment


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), "bert-base 4x1, bert-mini 2:4, bert-mini 4x1"),
        (Filters(model="bert-mini"), "bert-mini 2:4, bert-mini 4x1"),
        (Filters(model="*-b*,other"), "bert-base 4x1"),
        (Filters(pattern="2:4,4x1", dataset="sq*"), "bert-base 4x1, bert-mini 2:4, bert-mini 4x1"),
        (Filters(pattern=" 2:4 , 8x1"), "bert-mini 2:4"),
        (Filters(model="bert-mini", pattern="4x1"), "bert-mini 4x1"),
        (Filters(tags=[("ranks", "1")]), "bert-mini 2:4"),
        (Filters(tags=[("ranks", "0")], model="bert-base"), "bert-base 4x1"),
        (Filters(sweep="q"), "bert-base 4x1, bert-mini 2:4"),
        (Filters(sweep="q", tags=[("ranks", "0"), ("prune_distill.group", "2")]), "bert-base 4x1"),
        (Filters(model="distilbert"), ""),
    ],
)
def test_what_is_shown(several, filters, expected):
    rows, left_out = load(several.client, several.name, filters)
    assert ", ".join(f"{row.model} {row.pattern}" for row in rows) == expected
    hidden = all(each in (None, "distilbert") for each in (filters.model, filters.sweep)) and not filters.tags
    assert left_out == ({"failed": 1} if hidden and filters.pattern != " 2:4 , 8x1" else {})


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(model="bert-huge"), "no run matches --model bert-huge; there are: bert-base, bert-mini, distilbert"),
        (Filters(pattern="8x1,9x1", model="bert-base"), "no run matches --pattern 8x1,9x1; there are: 2:4, 4x1"),
        (Filters(dataset=""), "no run matches --dataset ; there are: squad"),
        (Filters(tags=[("ranks", "7")]), "no run matches --tag ranks=7; there are: ranks=0, ranks=1"),
        (Filters(tags=[("rank", "7")]), "no run matches --tag rank=7; there are: none"),
        (Filters(sweep="x"), "no run matches --sweep x; there are: p, q"),
        (
            Filters(model="bert-base", pattern="2:4"),
            "no run matches --model bert-base --pattern 2:4 at once; there are: bert-base squad 4x1, "
            "bert-mini squad 2:4, bert-mini squad 4x1, distilbert squad 4x1",
        ),
    ],
)
def test_nothing_matches(several, filters, message):
    with pytest.raises(NothingMatches) as error:
        load(several.client, several.name, filters)
    assert str(error.value) == message


def test_a_long_list_is_cut(experiment):
    experiment.log()
    (run,) = fetch(experiment.client, experiment.name)
    logged = []
    for at in range(23):
        logged.append(copy.deepcopy(run))
        logged[-1].data.params["model"] = f"m{at:02}"
    message = Filters(model="x").explain_no_match(logged)
    assert message.endswith("m18, m19, and 3 more")


def test_an_empty_store_is_no_mistake_of_the_filter(experiment):
    assert load(experiment.client, experiment.name, Filters(model="bert-huge")) == ([], {})


def test_published_rows_match_too(experiment):
    experiment.log()
    rows, _ = load(experiment.client, experiment.name, Filters(model="bert-large"), compare=True)
    assert {(row.model, row.dataset) for row in rows} == {("bert-large", "squad")}
    with pytest.raises(NothingMatches):
        load(experiment.client, experiment.name, Filters(model="bert-huge"), compare=True)


@given(label=st.text(min_size=1))
def test_every_label_matches_itself(label):
    assert matches(label, label)
    assert matches(label, "*")
    assert not matches(label, "")
