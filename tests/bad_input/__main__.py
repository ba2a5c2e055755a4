"""Bad input: what was tried to get a wrong result without a message, a leak or a crash.

`python -m tests.bad_input` runs these tests and prints their table: number, input, what happened before, what happens
now, and whether it holds today. A test is in the table by its marker
`@pytest.mark.bad_input("A2", "val.csv", before="...", after="...")`, in whichever file it is. Arguments are passed to
pytest, such as `-k A2` or `-n 2`.
"""

import sys
from pathlib import Path

import pytest


class Table:
    """The pytest plugin that selects the marked tests and collects their rows."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str, str]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Make a marked test selectable by its number."""
        for marker in item.iter_markers("bad_input"):
            item.extra_keyword_matches.add(marker.args[0])
            number, given = marker.args
            self.rows.setdefault(item.nodeid, (number, given, marker.kwargs["before"], marker.kwargs["after"]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test; a failure of its setup or teardown counts."""
        if report.failed or self.outcomes.get(report.nodeid) != "failed":
            self.outcomes[report.nodeid] = report.outcome

    def lines(self) -> list[str]:
        """The table in Markdown; tests with the same row share it."""
        outcomes: dict[tuple[str, str, str, str], set[str]] = {}
        for test, outcome in self.outcomes.items():
            if test in self.rows:
                outcomes.setdefault(self.rows[test], set()).add(outcome)
        rows = sorted(outcomes, key=lambda row: (row[0][0], int(row[0][1:] or 0), row[1]))
        head = ["| | input | before | now | today |", "|---|---|---|---|---|"]
        return head + [f"| {' | '.join(row)} | {', '.join(sorted(outcomes[row]))} |" for row in rows]


def main() -> int:
    """Run the marked tests and print their table; the exit status is pytest's."""
    table = Table()
    tests = str(Path(__file__).parent.parent)
    status = pytest.main(["-q", "-m", "bad_input", "--durations=0", tests, *sys.argv[1:]], [table])
    print("\n".join(table.lines()))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
