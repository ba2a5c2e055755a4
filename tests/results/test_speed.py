"""Measured latencies in the table: pooled over seeds of one CPU, one for each row, empty where nothing was timed."""

import csv
import io
import json

import pytest

from results import caveats, columns, formats, speed, table
from results.load import load

CPU = "Fast CPU 9000"


def timed(ms, faster=None, precision="bfloat16", batch=1, length=128, threads=1, runtime="sparse"):
    """The metrics of one timing."""
    setting = (runtime, precision, batch, length, threads)
    metrics = {columns.latency(*setting): ms}
    return metrics | ({} if faster is None else {columns.speedup(*setting): faster})


@pytest.fixture
def log(experiment):
    """Logs a run with times, on a CPU."""

    def run(metrics, cpu=CPU, **other):
        run_id = experiment.log(metrics=metrics, **other)
        if cpu is not None:
            experiment.client.set_tag(run_id, columns.CPU, cpu)
        return run_id

    return run


def cells(rows, header):
    """The cells of a column; None if the table does not have it."""
    found = [column for column in table.layout(rows) if column.header == header]
    return [found[0].cell(row) for row in rows] if found else None


@pytest.mark.parametrize("setting", [("ONNX Runtime", "int8", 8, 384, 2), ("torch.compile", "bfloat16", 1, 128, 1)])
def test_a_metrics_name_gives_its_setting_back(setting):
    runtime, *rest = setting
    for name in (columns.latency(*setting), columns.speedup(*setting)):
        assert columns.setting(name) == (runtime.lower().replace(" ", "_"), *rest)
    assert columns.setting("latency/sparse") is None
    assert columns.setting("dense/sparse_int8_b1_l128_t1") is None


def test_the_table_shows_the_fastest_float_precision_of_the_first_setting(experiment, log, rows_of):
    log(
        timed(4.0, 2.5)
        | timed(9.0, 1.1, "float32")
        | timed(2.0, 5.0, "int8")
        | timed(1.0, 9.0, threads=2)
        | timed(3.0, 2.0, batch=8)
        | timed(3.5, 2.2, length=384)
        | timed(1.5, 1.0, "float32", runtime="OpenVINO")
    )
    (row,), _ = rows_of(experiment)
    assert (row.latency.ms, row.latency.ratio_to_best_dense) == (4.0, 2.5)
    assert (cells([row], "Latency ms"), cells([row], "Faster than best dense")) == (["4.00"], ["2.50x"])
    (short,) = [column for column in table.layout([row], wide=False) if column.header == "Latency ms"]
    assert short.cell(row) == "4.00 (2.50x)"
    assert len(row.latencies) == 7
    assert list(caveats.latency(row)) == [
        f"latency: sparse runtime in bfloat16, batch 1, 128 tokens, 1 thread (CPU time), on {CPU}"
    ]


def test_seeds_on_one_cpu_are_pooled_by_their_median_and_others_left_out(experiment, log, rows_of):
    for seed, (ms, cpu) in enumerate([(4.0, CPU), (7.0, CPU), (5.0, CPU), (90.0, "Slow CPU"), (80.0, None)]):
        log(timed(ms, ms / 2), cpu, seed=seed)
    (row,), _ = rows_of(experiment)
    assert (row.latency.ms, row.latency.ratio_to_best_dense) == (5.0, 2.5)
    assert (row.latency.cpu, row.latency.timed_seeds, row.latency.seeds_elsewhere) == (CPU, 3, 1)
    assert list(caveats.latency(row))[1:] == ["latency: 3 of 5 seeds; 1 seed timed on another CPU"]


def test_rows_that_were_not_timed_have_empty_cells(experiment, log, rows_of):
    log({})
    (row,), _ = rows_of(experiment)
    assert (row.latency, cells([row], "Latency ms"), list(caveats.latency(row))) == (None, None, [])
    log(timed(4.0), pattern="8x1", group="h")
    rows, _ = rows_of(experiment)
    assert cells(rows, "Latency ms") == ["", "4.00"]
    assert cells(rows, "Faster than best dense") is None  # there was no dense runtime


def test_times_that_are_no_number_count_as_missing(experiment, log, rows_of):
    log(timed(4.0, float("nan")) | timed(float("nan"), 3.0, "float32"))
    (row,), _ = rows_of(experiment)
    assert [(each.ms, each.ratio_to_best_dense) for each in row.latencies] == [(4.0, None)]


def test_csv_and_json_have_the_latency_with_its_setting(experiment, log):
    log(timed(4.125, 2.5) | timed(2.0, 5.0, "int8"))
    rows, _ = load(experiment.client, experiment.name)
    (line,) = csv.DictReader(io.StringIO(formats.comma_separated(rows)))
    wanted = {"ms": "4.125", "ratio_to_best_dense": "2.5", "precision": "bfloat16", "batch": "1", "cpu": CPU}
    assert {name: line[f"latency_{name}"] for name in wanted} == wanted
    assert f"on {CPU}" in line["notes"]
    (record,) = json.loads(formats.as_json(rows))
    assert (record["latency"]["ms"], record["latency"]["length"]) == (4.125, 128)
    assert [(each["precision"], each["ms"]) for each in record["latencies"]] == [("bfloat16", 4.125), ("int8", 2.0)]


def test_the_order_of_the_cpus_does_not_matter(experiment, log, rows_of):
    log(timed(4.0), "b", seed=0)
    log(timed(6.0), "a", seed=1)
    (row,), _ = rows_of(experiment)
    assert (row.latency.cpu, row.latency.ms) == ("a", 6.0)
    assert speed.shown([]) is None
