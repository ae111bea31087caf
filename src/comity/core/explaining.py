"""Why an agent was, or would be, chosen: the candidates with their loads, limits and scores, as JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

from comity.core.matching import Matcher, unmet
from comity.core.pools import Candidate, Pool
from comity.core.strategies import Fits
from comity.model.capability import AgentStatus, Requirements, Strategy

SHOWN = 50
_LOOKED_AT = 5000
"""Candidates looked through for those to show; keeps a question from holding up the leader."""

_RULES = {
    Strategy.LEAST_LOADED: "fewest in flight, ties in rotation",
    Strategy.ROUND_ROBIN: "next in turn",
    Strategy.WEIGHTED_RANDOM: "drawn at random in proportion to score; the first drawn from is shown",
    Strategy.BEST_FIT: "highest score, ties in rotation",
    Strategy.POWER_OF_TWO: "the less loaded of two drawn at random; one of them is shown",
    Strategy.STICKY: "has the key, or would have it without those that cannot take it",
}


class Question:
    """What ``choose`` was, or would be, asked. ``match`` is None if nothing is required."""

    def __init__(
        self,
        capability: str,
        how: Strategy,
        needs: Requirements | None,
        match: Matcher | None,
        hidden: Collection[Candidate],
        benched: Mapping[Candidate, str],
    ) -> None:
        self.capability = capability
        self.how = how
        self.needs = needs
        self.key = needs.sticky if needs is not None else ""
        self.match = match
        self.hidden = hidden
        self.benched = benched

    def accepts(self, candidate: Candidate) -> bool:
        if candidate in self.hidden or candidate.record is None:
            return False
        return self.match is None or self.match.meets(candidate.record)

    def why_not(self, candidate: Candidate) -> str:
        """Why the candidate cannot have it now; "" if it can."""
        record = candidate.record
        assert record is not None, "who offers something is known"
        lacking = unmet(self.needs, self.capability, record) if self.needs is not None else ""
        if lacking:
            return lacking
        if candidate in self.hidden:
            return "to be avoided"
        if record.status is not AgentStatus.ACTIVE:
            return f"its status is {record.status}"
        if not candidate.live:
            return f"its node {record.node} is not alive, or takes no new work"
        if candidate in self.benched:
            return self.benched[candidate]
        if not candidate.ready:
            return f"busy: {candidate.load} of {candidate.limit}"
        return ""


def serves(needs: Requirements, capability: str, among: Collection[Candidate]) -> bool:
    """Whether one of ``among`` is live, busy or not, and meets ``needs``; True as well if there are too many to ask."""
    match = Matcher(needs, capability)
    return len(among) > _LOOKED_AT or any(
        candidate.live and candidate.record is not None and match.meets(candidate.record)
        and needs.agent in ("", candidate.id) and candidate.id not in needs.avoid
        for candidate in among
    )  # fmt: skip


def explain(question: Question, pool: Pool, among: Collection[Candidate], fits: Fits) -> dict[str, Any]:
    """``pool`` ranks ``among``, or at least those of it that meet the requirements; ``choice`` is the first of them."""
    eligible = list(islice(filter(question.accepts, islice(pool.ranked(question.key), _LOOKED_AT)), SHOWN))
    rows = [_row(question, candidate, "", fits) for candidate in eligible]
    reasons: dict[str, int] = {}
    for candidate in islice(among, _LOOKED_AT):
        if len(rows) == SHOWN:
            break
        why_not = question.why_not(candidate)
        if why_not:
            reasons[why_not] = reasons.get(why_not, 0) + 1
            rows.append(_row(question, candidate, why_not, fits))
    if question.how is Strategy.BEST_FIT:
        best = max((row["score"] for row in rows), default=0.0) or 1.0
        for row in rows:
            row["score"] = round(row["score"] / best, 6)
    choice = eligible[0].id if eligible else None
    reason = f"{choice}: {_RULES[question.how]}" if choice else _nobody(question, reasons)
    return {"strategy": str(question.how), "candidates": rows, "choice": choice, "reason": reason}


def _row(question: Question, candidate: Candidate, why_not: str, fits: Fits) -> dict[str, Any]:
    row: dict[str, Any] = {
        "agent": candidate.id,
        "load": candidate.load,
        "limit": candidate.limit,
        "score": _score(question.how, candidate, fits),
        "eligible": not why_not,
        "why_not": why_not,
    }
    if question.how is Strategy.BEST_FIT:
        row["figures"] = fits.of(candidate).figures()
    return row


def _score(how: Strategy, candidate: Candidate, fits: Fits) -> float:
    if how in (Strategy.LEAST_LOADED, Strategy.POWER_OF_TWO):
        return 0.0 - candidate.load  # an idle one has 0, not -0
    if how is Strategy.WEIGHTED_RANDOM:
        return candidate.weight
    if how is Strategy.BEST_FIT:
        return fits.score(candidate)
    return 0.0


def _nobody(question: Question, reasons: dict[str, int]) -> str:
    if not reasons:
        return f"no agent offers {question.capability}"
    told = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    return f"no agent can take {question.capability} now: " + "; ".join(f"{count} x {why}" for why, count in told)
