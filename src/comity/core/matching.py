"""Requirements, prepared for asking many agents. Means the same as ``Requirements.met_by`` (a test compares the two)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Generic, TypeVar

from comity.errors import BadInput
from comity.model.capability import AgentRecord, Requirements, parse_range, version_in_range

T = TypeVar("T")
Signature = tuple[Any, ...]
Feature = tuple[str, ...]
"""Something agents can be found by: a tag, a label with its value, a kind."""


def signature(needs: Requirements) -> Signature:
    """Equal for requirements that the same agents meet, but for ``agent`` and ``avoid``, which name agents, and ``sticky``,
    which orders them. Empty if none."""
    labels = tuple(sorted(needs.labels.items())) if needs.labels else ()
    key = (needs.tags, needs.any_tags, labels, needs.cpu, needs.memory_mb, needs.gpu, needs.version, needs.kind)
    return key if any(key) else ()


class Matcher:
    """Whether an agent meets requirements with one of its offers of ``capability``, ``agent`` and ``avoid`` aside. Counts how
    often it is ``asked``. BadInput for a version range that cannot be read; an offer whose version cannot be read is
    outside every range."""

    __slots__ = ("_capability", "_in_range", "_needs", "_tags", "asked")

    def __init__(self, needs: Requirements, capability: str) -> None:
        self.asked = 0
        self._needs = needs
        self._capability = capability
        self._tags = frozenset(needs.tags)
        self._in_range: dict[str, bool] = {}
        if needs.version:
            parse_range(needs.version)

    def __call__(self, record: AgentRecord) -> bool:
        self.asked += 1
        return self.meets(record)

    def meets(self, record: AgentRecord) -> bool:
        """The same, not counted."""
        needs, have = self._needs, record.resources
        if needs.kind and record.kind != needs.kind:
            return False
        if self._tags and not self._tags.issubset(record.tags):
            return False
        if needs.any_tags and not any(tag in record.tags for tag in needs.any_tags):
            return False
        if needs.labels and any(record.labels.get(key) != value for key, value in needs.labels.items()):
            return False
        if needs.cpu > have.cpu - have.cpu_used or needs.gpu > have.gpu - have.gpu_used:
            return False
        if needs.memory_mb > have.memory_mb - have.memory_used_mb:
            return False
        return any(
            offer.name == self._capability and (not needs.version or self._readable_and_in_range(offer.version))
            for offer in record.offers
        )

    def _readable_and_in_range(self, version: str) -> bool:
        verdict = self._in_range.get(version)
        if verdict is None:
            try:
                verdict = version_in_range(version, self._needs.version)
            except BadInput:
                verdict = False
            self._in_range[version] = verdict
        return verdict


def unmet(needs: Requirements, capability: str, record: AgentRecord) -> str:
    """The first of ``needs`` that the agent does not meet, in words; "" if it meets all but ``avoid``."""
    have = record.resources
    short = [
        f"has {free:g} {what} free, not {asked:g}"
        for what, asked, free in (
            ("CPU cores", needs.cpu, have.cpu - have.cpu_used),
            ("MiB of memory", needs.memory_mb, have.memory_mb - have.memory_used_mb),
            ("GPUs", needs.gpu, have.gpu - have.gpu_used),
        )
        if asked > free
    ]
    lacking = [f"lacks tag {tag}" for tag in needs.tags if tag not in record.tags]
    if needs.any_tags and not any(tag in record.tags for tag in needs.any_tags):
        lacking.append(f"has none of the tags {', '.join(needs.any_tags)}")
    lacking += [f"label {key} is not {value}" for key, value in needs.labels.items() if record.labels.get(key) != value]
    if needs.kind and record.kind != needs.kind:
        lacking.append(f"is not of kind {needs.kind}")
    if needs.agent and record.id != needs.agent:
        lacking.append(f"is not {needs.agent}")
    if not lacking and not short and not Matcher(needs, capability).meets(record):
        lacking.append(f"offers no version {needs.version}")
    return (lacking + short)[0] if lacking or short else ""


def same_place(old: AgentRecord, new: AgentRecord) -> bool:
    """Whether the agent stays in the pools it is in."""
    return (
        old.offers == new.offers
        and old.tags == new.tags
        and old.labels == new.labels
        and old.kind == new.kind
        and old.node == new.node
        and old.resources == new.resources
    )


def features(agent: AgentRecord) -> dict[Feature, None]:
    """What agents can be found by."""
    found: dict[Feature, None] = {("tag", tag): None for tag in agent.tags}
    for key, value in agent.labels.items():
        found["label", key, value] = None
    if agent.kind:
        found["kind", agent.kind] = None
    return found


def asked(needs: Requirements) -> list[Feature]:
    """Features that every agent that meets ``needs`` has."""
    wanted: list[Feature] = [("tag", tag) for tag in needs.tags]
    wanted += [("label", key, value) for key, value in needs.labels.items()]
    if needs.kind:
        wanted.append(("kind", needs.kind))
    return wanted


class Found(Generic[T]):
    """Whom each feature can be found at."""

    __slots__ = ("_by_feature",)

    def __init__(self) -> None:
        self._by_feature: dict[Feature, dict[T, None]] = {}

    def add(self, one: T, agent: AgentRecord) -> None:
        for feature in features(agent):
            self._by_feature.setdefault(feature, {})[one] = None

    def remove(self, one: T, agent: AgentRecord) -> None:
        for feature in features(agent):
            have = self._by_feature[feature]
            del have[one]
            if not have:
                del self._by_feature[feature]

    def rarest(self, needs: Requirements, among: Collection[T]) -> Collection[T]:
        """The smallest set known to hold each of ``among`` that meets ``needs``."""
        return min((among, *(self._by_feature.get(feature, {}) for feature in asked(needs))), key=len)
