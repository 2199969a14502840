"""Labels 0 and 1: whether an item fits what was searched for."""

from typing import Literal

from mtrec_ray.tasks.kind import KINDS
from mtrec_ray.tasks.ranking import Ranking


@KINDS.register("query_match")
class QueryMatch(Ranking):
    """Label 0 or 1 of an item and the query that it was shown for; by default the score is a probability.

    The model reads the query before the item's text (`data.columns.query`), so z is of both. What was shown together
    was shown for one query: the metrics of lists are per query. With a loss over groups it is kind `ranking`.
    """

    class Params(Ranking.Params):
        loss: Literal["pairwise", "listwise", "bce"] = "bce"

    params: Params
    needs_columns = ("query",)
