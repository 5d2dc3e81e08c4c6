"""Learning curves in docs/: means, bands and styles of hand-made runs."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from benchmarks.figures import ARMS, BASELINE, arm_styles, draw_seeds, panels, smoothed

STYLE = {"color": "#12457d", "linestyle": "-"}


def test_the_mean_ends_with_the_shortest_run_and_the_band_is_students():
    with panels(["value"], "title") as (_, (panel,)):
        draw_seeds(panel, [[(0, 0.0), (2, 2.0)], [(0, 2.0), (1, 3.0), (3, 5.0)]], "arm", STYLE)
        faint, mean = panel.lines[:2], panel.lines[2]
        assert [line.get_alpha() for line in faint] == [0.3, 0.3] and mean.get_label() == "arm"
        # the first run is 1 at 1 and the second 4 at 2
        assert mean.get_xydata().tolist() == [[0, 1], [1, 2], [2, 3]]
        (band,) = panel.collections
        top = max(y for x, y in band.get_paths()[0].vertices if x == 0)
        assert top == pytest.approx(1 + 12.706 * 2**0.5 / 2**0.5, abs=0.01)  # two values, 2 apart


def test_one_run_has_no_band_and_no_run_draws_nothing():
    with panels(["value"], "title") as (_, (panel,)):
        draw_seeds(panel, [[], []], "absent", STYLE)
        assert not panel.lines
        draw_seeds(panel, [[(0, 1.0), (1, 2.0)]], "arm", STYLE)
        assert not panel.collections and len(panel.lines) == 2


def test_long_curves_are_smoothed_without_a_shift():
    line = np.arange(40.0)
    assert smoothed(line, 5).tolist() == pytest.approx(line.tolist(), abs=1.0)
    assert smoothed(line, 5)[5:-5].tolist() == pytest.approx(line[5:-5].tolist())


def test_arms_differ_in_grey_too_and_the_baseline_is_the_same_everywhere():
    styles = arm_styles(["method", "grpo", "variant"])
    assert styles["grpo"]["color"] == arm_styles(["other", "grpo"])["grpo"]["color"] == BASELINE[0]
    looks = [(sum(np.array(to_rgb(color)) * (0.299, 0.587, 0.114)), dashes) for color, dashes in (*ARMS, BASELINE)]
    assert len({dashes for _, dashes in looks}) == len(looks)


@pytest.mark.parametrize(("headings", "rows"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_no_row_has_more_than_two_panels(headings, rows):
    with panels([str(n) for n in range(headings)], "title") as (figure, axes):
        assert len(axes) == headings and len({axis.get_subplotspec().rowspan.start for axis in axes}) == rows
        assert figure.get_suptitle() == "title"
