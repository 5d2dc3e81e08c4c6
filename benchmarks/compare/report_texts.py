"""Style and texts of the report of a comparison."""

from typing import Literal

STYLE = """
:root{--ink:#1f2933;--soft:#5b6773;--line:#e3e7eb;--blue:#2563a8;--good:#1e7a46;--bad:#b23b3b}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:#fff;
  max-width:78rem;margin:0 auto;padding:2rem 1.5rem 4rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.4rem 0 .5rem}
p{max-width:62rem;margin:.4rem 0}.soft,caption{color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.1rem 0}
.facts div{border:1px solid var(--line);border-radius:.5rem;padding:.45rem .8rem}
.facts b{display:block;font-size:.95rem}.facts span{color:var(--soft);font-size:.8rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{font-size:.8rem;font-weight:600;color:var(--soft);border-bottom:2px solid #c7ced5;vertical-align:bottom}
th small{font-weight:400}th:first-child,td:first-child{text-align:left}
tbody tr:hover{background:#f6f8fa}tr.start td{background:#faf7f0}
td i{font-style:normal;color:var(--soft);font-size:.85em}
.best{font-weight:700;color:var(--good)}.up{color:var(--good)}.down{color:var(--bad)}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}td a{color:inherit}
figure{margin:1rem 0}figure svg{width:100%;height:auto;max-width:60rem}
details{margin:1rem 0}summary{cursor:pointer;font-weight:600}
figcaption{color:var(--soft);font-size:.88rem;max-width:60rem}ul{padding-left:1.2rem}
"""

HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>Comparison of methods</title>"
)
TASK = "All methods have the same initial policy, the same problems and the same number of generated tokens."
FRONT_CAPTION = (
    "Means over seeds with 95 % intervals. The line joins the methods that no other method beats in both quantities. "
    "It is drawn through the means; where intervals overlap, the order may be chance."
)
CURVES_CAPTION = "Thin lines are seeds, the thick line is their mean, and the dashed grey line is the baseline's mean."
_SECONDS = "Seconds are those of this machine, with evaluations; runs beside other programs take longer. "
_REWARDS = "Each method has its own reward, so panels do not compare. "
#: (title, metric, axis, caption) of further curves
MORE_CURVES: tuple[tuple[str, str, Literal["tokens", "seconds"], str], ...] = (
    ("Accuracy against seconds", "val/pass1", "seconds", _SECONDS + CURVES_CAPTION),
    ("Reward against tokens", "val/reward", "tokens", _REWARDS + "Thin lines are seeds, the thick line their mean."),
    ("Reward against seconds", "val/reward", "seconds", _REWARDS + _SECONDS),
)
READING = (
    "Each number is a mean over {seeds} seed(s); &plusmn; is half of Student's 95 % interval of that mean. The seeds "
    "differ in what is sampled, not in the problems, so the intervals say how much would change with other random "
    'numbers on these problems, and nothing about other problems. <span class="up">Green</span> and '
    '<span class="down">red</span> are better and worse than the same run\'s first value, where the interval of that '
    'difference excludes zero; <span class="best">bold</span> is best of all, where the interval of the difference '
    "from every other method excludes zero (without a correction for the number of comparisons). The column of "
    "differences pairs runs of one seed; p is that of the paired t-test, corrected for the number of methods by "
    "Holm's rule, and colour there means p of at most 0.05. A shorter length "
    "counts as better, since it is cheaper. With one seed there are no intervals, and nothing is marked. Rewards are "
    "each method's own and do not compare between methods. Time is that of the whole run on this machine, with its "
    "evaluations."
)
HELP_READING = (
    "HC-RLHF needs a cost, so it trains on the records help desk instead, from assets/tiny_assistant, for a quarter of "
    "the tokens, since its answers are short. Its numbers do not compare with any above. True reward and cost come "
    "from a rule that training never sees. Its guarantee needs the safety test, which these runs leave out, because "
    "each test uses up its prompts: <code>make hc-rlhf</code> runs it."
)
METHOD = (
    "Every run is <code>main.py fit</code> with the method's own configurations, then configs/compare.yaml (initial "
    "policy, problems, batch, sampling, evaluation), then callbacks.TokenBudget. Learning rates, rewards, objectives "
    "and callbacks are the method's own; thresholds in tokens or rollouts are scaled to the task by "
    "the <code>comparison</code> of the method's Paper block. A run ends with the rollout that reaches the "
    "budget, so it may exceed it by less than a rollout. Completions that a method discards and samples of its "
    "monitors count; AdaptThink's measurement of the initial policy before training does not. These are few tokens: "
    "the table shows how fast methods learn at first, not where they end."
)
