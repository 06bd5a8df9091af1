"""The messages that arrived, by message and by publish."""

import threading
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Notes deliveries as a receiver sees them; one thread notes, others ask."""

    # Message id -> who published it (the AMQP property app_id), one for each publish, in the order of arrival.
    publishes: dict[str, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, message_id: str, app_id: str, redelivered: bool) -> None:
        """A broker delivers one publish again when the receiver's connection ended before its acknowledgement arrived. It marks
        such a delivery as redelivered, so that one is not a second publish, unless another program published it. A mark on the
        first that arrives says only that the receiver never noted the one before."""
        with self._lock:
            seen = self.publishes.setdefault(message_id, [])
            if not redelivered or app_id not in seen:
                seen.append(app_id)

    def arrived(self) -> int:
        return len(self.publishes)

    def missing(self, expected) -> set[str]:
        with self._lock:
            return set(expected) - self.publishes.keys()

    def first_by(self, app_id: str) -> int:
        """Messages that arrived first from this publisher."""
        with self._lock:
            return sum(1 for by in self.publishes.values() if by[0] == app_id)

    def twice(self) -> int:
        """Messages that were published more than once."""
        with self._lock:
            return sum(1 for by in self.publishes.values() if len(by) > 1)

    def unexpected(self, expected) -> int:
        """Messages that arrived although no committed save sent them."""
        with self._lock:
            return len(self.publishes.keys() - set(expected))

    def out_of_order(self, sent_by_document) -> int:
        """Messages that arrived, for the first time, after a later one of their document."""
        with self._lock:
            place = {message_id: index for index, message_id in enumerate(self.publishes)}
        late = 0
        for sent in sent_by_document:
            arrived = [place[message_id] for message_id in sent if message_id in place]
            soonest = len(place)
            for index in reversed(arrived):
                late += index > soonest
                soonest = min(soonest, index)
        return late
