"""Stage for ``core.ledger``.

    entry NAME parent=NAME|root term=N [lead=WHO] [time=MS] [network=NAME]     make an entry, keep it by name
    damage NAME byte=N          flip the lowest bit of a byte        cut NAME keep=N     keep the first bytes only
    offer INDEX NAME            the verdict                          show                the ledger's state
    restart                     go on with a ledger restored from the state
"""

from __future__ import annotations

from collections.abc import Iterator

from transcript import Command

from comity.core.ledger import Effective, Ledger
from comity.errors import Corrupt, ForeignData
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.ids import ProcessId
from comity.model.task import Barrier, Entry, Lead


class LedgerStage:
    def __init__(self) -> None:
        self.ledger = Ledger("main")
        self.bytes: dict[str, bytes] = {}
        self.digests = {"root": ROOT_DIGEST}

    def do(self, command: Command) -> Iterator[str]:
        name, words, options = command
        if name == "entry":
            self._entry(words[0], options)
        elif name == "damage":
            data = bytearray(self.bytes[words[0]])
            data[int(options["byte"])] ^= 1
            self.bytes[words[0]] = bytes(data)
        elif name == "cut":
            self.bytes[words[0]] = self.bytes[words[0]][: int(options["keep"])]
        elif name == "offer":
            yield self._offer(int(words[0]), self.bytes[words[1]])
        elif name == "show":
            yield self._show()
        elif name == "restart":
            self.ledger = Ledger.restore(self.ledger.state())
        else:
            raise ValueError(f"unknown command {name}")

    def _entry(self, name: str, options: dict[str, str]) -> None:
        first = Lead(ProcessId(options["lead"])) if "lead" in options else Barrier()
        parent = self.digests[options["parent"]]
        entry = Entry(
            options.get("network", "main"), int(options["term"]), parent, int(options.get("time", "0")), [first]
        )
        self.bytes[name], self.digests[name] = seal(entry)

    def _offer(self, index: int, data: bytes) -> str:
        try:
            verdict = self.ledger.offer(index, data)
        except (Corrupt, ForeignData) as error:
            return f"{index} {error.code}: {error.message}"
        self.ledger.check()
        if isinstance(verdict, Effective):
            return f"{index} effective term={verdict.entry.term} time={verdict.time_ms}"
        return f"{index} void: {verdict.reason}"

    def _show(self) -> str:
        ledger = self.ledger
        last = next(name for name, digest in self.digests.items() if digest == ledger.digest)
        return f"index={ledger.index} effective={ledger.effective_index} last={last} term={ledger.term} time={ledger.time_ms}"


stage = LedgerStage
