"""Any sizes: the law of the family and the agreement of row and token ids, for shapes and ids drawn by hypothesis.

Among them: one task, one row, one token, r above both dimensions, far more tasks than rows.
"""

from dataclasses import replace

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from helpers_updates import CASES, build, close, factors_at, ids, randn

shapes = st.fixed_dictionaries(
    {
        "case": st.sampled_from(CASES),
        "rows": st.integers(1, 6),
        "length": st.integers(1, 40),
        "in_features": st.integers(1, 9),
        "out_features": st.integers(1, 9),
        "tasks": st.sampled_from([1, 2, 3, 17, 300]),
        "r": st.integers(1, 12),
        "seed": st.integers(0, 99),
    }
)
EXTREME = {"rows": 1, "length": 1, "in_features": 1, "out_features": 1, "tasks": 1, "r": 1, "seed": 0}


@given(shapes)
@example({**EXTREME, "case": CASES[1]})
@example({**EXTREME, "case": CASES[-1]})
@example({**EXTREME, "case": CASES[1], "tasks": 5000, "rows": 2, "length": 33})
@example({**EXTREME, "case": CASES[-1], "tasks": 5000, "rows": 2, "length": 33})
def test_law_for_rows_and_tokens(shape):
    options = shape["case"].options
    r = shape["r"] * getattr(options, "experts", 1)  # experts share the rank
    case = replace(shape["case"], options=replace(options, r=r))
    torch.manual_seed(shape["seed"])
    update = build(case, shape["in_features"], shape["out_features"], shape["tasks"])
    x = randn(shape["rows"], shape["length"], shape["in_features"])
    per_token = torch.randint(shape["tasks"], (shape["rows"], shape["length"]))

    def of_token(task, token):
        down, up = factors_at(update, ids(task), token)
        return up @ (down @ token)

    expected = torch.stack(
        [
            torch.stack([of_token(task, token) for task, token in zip(tasks, tokens, strict=True)])
            for tasks, tokens in zip(per_token, x, strict=True)
        ]
    )
    close(update(x, ids(per_token)), expected, tolerance=1e-11)
    per_row = per_token[:, 0]
    close(update(x, ids(per_row)), update(x, ids(per_row[:, None].expand_as(per_token))), tolerance=1e-11)
