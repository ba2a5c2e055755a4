from results.progress import reported


def test_many_items_are_reported_each_tenth_on_stderr(capsys):
    assert list(reported(range(60), "runs", 60)) == list(range(60))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"runs: {6 * tenth} of 60" for tenth in range(1, 11)]


def test_few_items_are_not(capsys):
    assert list(reported(range(49), "runs", 49)) == list(range(49))
    assert capsys.readouterr().err == ""
