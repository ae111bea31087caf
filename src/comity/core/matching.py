"""Requirements, prepared for asking many agents. Means the same as ``Requirements.met_by`` (a test compares the two)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comity.errors import BadInput
from comity.model.capability import AgentRecord, Requirements, parse_range, parse_version, version_in_range

Signature = tuple[Any, ...]
Feature = tuple[str, ...]
"""Something agents can be found by: a tag, a label with its value, a kind."""


def signature(needs: Requirements) -> Signature:
    """Equal for requirements that the same agents meet, but for ``agent`` and ``avoid``, which name agents. Empty if none."""
    labels = tuple(sorted(needs.labels.items())) if needs.labels else ()
    key = (needs.tags, needs.any_tags, labels, needs.cpu, needs.memory_mb, needs.gpu, needs.version, needs.kind)
    return key if any(key) else ()


def matcher(needs: Requirements, capability: str) -> Callable[[AgentRecord], bool]:
    """Whether an agent meets ``needs`` with one of its offers of ``capability``, ``agent`` and ``avoid`` aside. BadInput for a
    version range that cannot be read; an offer whose version cannot be read is outside every range."""
    tags, any_tags, labels = frozenset(needs.tags), frozenset(needs.any_tags), tuple(needs.labels.items())
    kind, version = needs.kind, needs.version
    cpu, memory_mb, gpu = needs.cpu, needs.memory_mb, needs.gpu
    if version:
        parse_range(version)
    known: dict[str, bool] = {}

    def in_range(offered: str) -> bool:
        verdict = known.get(offered)
        if verdict is None:
            try:
                parse_version(offered)
                verdict = version_in_range(offered, version)
            except BadInput:
                verdict = False
            known[offered] = verdict
        return verdict

    def match(record: AgentRecord) -> bool:
        if kind and record.kind != kind:
            return False
        if tags and not tags.issubset(record.tags):
            return False
        if any_tags and any_tags.isdisjoint(record.tags):
            return False
        for key, value in labels:
            if record.labels.get(key) != value:
                return False
        have = record.resources
        if cpu > have.cpu - have.cpu_used or gpu > have.gpu - have.gpu_used:
            return False
        if memory_mb > have.memory_mb - have.memory_used_mb:
            return False
        if not version:
            return any(offer.name == capability for offer in record.offers)
        return any(offer.name == capability and in_range(offer.version) for offer in record.offers)

    return match


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
    if not lacking and not short and not matcher(needs, capability)(record):
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
