"""What the benchmark says of its numbers: the README shows those of the file, and a lucky look is not an arrival."""

import json

import bench
import bench_images


def test_the_readme_shows_the_numbers_of_the_file():
    results = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    readme = bench.README.read_text(encoding="utf-8")
    assert bench.table(results) in readme
    assert bench.with_table(readme, results) == readme


def test_other_numbers_make_another_readme():
    results = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    readme = bench.README.read_text(encoding="utf-8")
    results["swiss"]["median_seconds"] = 123.4
    changed = bench.with_table(readme, results)
    assert "123.4 s" in changed and "123.4 s" not in readme
    assert len(changed.splitlines()) == len(readme.splitlines())


def look(step, ratio):
    return {"step": step, "seconds": step / 10, "cpu_seconds": step / 10, "ratio": ratio, "energy_distance": 0.0}


def test_a_look_counts_if_the_next_one_confirms_it():
    curve = [look(100, 3.0), look(200, 1.1), look(300, 1.4), look(400, 1.2), look(500, 1.0)]
    assert bench.reached(curve)["step"] == 400
    assert bench.reached(curve[:4]) is None


def test_the_readme_shows_the_throughput_of_the_files():
    readme = bench.README.read_text(encoding="utf-8")
    assert bench_images.renew(readme) == readme and bench_images.table().count("\n") >= 3
