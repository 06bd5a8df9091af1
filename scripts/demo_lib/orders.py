"""The orders, read from MongoDB by a client that is independent of this project's library."""

from dataclasses import dataclass

from pymongo import MongoClient


@dataclass(frozen=True)
class Outboxes:
    """The messages in the outboxes."""

    messages: int
    documents: int
    dead: int


class Orders:
    def __init__(self, uri: str, database: str):
        self.client = MongoClient(uri, uuidRepresentation="standard", readConcernLevel="majority")
        self.collection = self.client[database]["orders"]

    def sent(self) -> list[list[str]]:
        """For each order the ids of all messages it ever sent, in order. The application writes them in the save that sends the
        messages, to a field that the library does not know."""
        return [order["sent"] for order in self.collection.find({}, {"sent": 1})]

    def outboxes(self) -> Outboxes:
        messages = documents = dead = 0
        for order in self.collection.find({"outbox.0": {"$exists": True}}, {"outbox.id": 1, "outbox.dead_at": 1}):
            documents += 1
            messages += len(order["outbox"])
            dead += sum(1 for entry in order["outbox"] if "dead_at" in entry)
        return Outboxes(messages, documents, dead)

    def saves(self) -> int:
        """Saves so far: an order in the n-th state was saved n times."""
        states = ["placed", "paid", "packed", "shipped"]
        return sum(1 + states.index(order["state"]) for order in self.collection.find({}, {"state": 1}))

    def drop(self, *databases: str) -> None:
        for database in databases:
            self.client.drop_database(database)
