"""Services of an earlier version together with today's; scripts/mixed-versions starts it."""

import argparse
import datetime
import re
import sys
import time
import urllib.request
import uuid
from pathlib import Path

from bson import Binary, ObjectId
from bson.binary import UuidRepresentation
from bson.int64 import Int64
from pymongo import MongoClient

from . import receiver as broker
from .ledger import Ledger
from .orders import Orders
from .programs import Failed, OrderApplication, Program
from .receiver import Receiver

SAVES = 240
PATIENCE = 120.0  # for a whole scene
NOBODY = "amqp://guest:guest@127.0.0.1:1/%2f"  # RabbitMQ as the applications see it: away
# Texts that no log may contain. Each is a sign of a version that the other one does not understand.
BAD = re.compile(r"\bERROR\b|was refused|are not entries|is LOST|panicked|another cluster")


class Scene:
    """One database, one queue and one state database, for programs of both versions."""

    def __init__(self, options: argparse.Namespace, name: str):
        self.options = options
        self.name = f"outbox_versions_{name}"
        self.ledger = Ledger()
        self.orders = Orders(options.mongodb, self.name)
        self.client = MongoClient(options.mongodb, uuidRepresentation="standard")
        self.receiver = Receiver(options.rabbitmq, f"{self.name}.messages", f"{self.name}.receiver", self.ledger)
        self.foreign: set[str] = set()
        self.programs: list[Program] = []
        self.began = time.monotonic()

    def service(self, version: str, name: str) -> Program:
        env = {
            "OUTBOX_MONGODB_URI": self.options.mongodb,
            "OUTBOX_RABBITMQ_URI": self.options.rabbitmq,
            "OUTBOX_MESSAGES_EXCHANGE": f"{self.name}.messages",
            "OUTBOX_COMMANDS_EXCHANGE": f"{self.name}.commands",
            "OUTBOX_COMMANDS_QUEUE": f"{self.name}.commands",
            "OUTBOX_WATCH": f"{self.name}.*",
            "OUTBOX_STATE_DATABASE": f"{self.name}_state",
            "OUTBOX_HTTP_LISTEN": "127.0.0.1:0",
            "OUTBOX_LOG_FORMAT": "json",
        }
        if name == "outbox-rescuer":
            env |= {"OUTBOX_DELAY": "1s", "OUTBOX_SWEEP_INTERVAL": "1s", "OUTBOX_LEASE": "4s", "OUTBOX_SHUTDOWN_GRACE": "3s"}
            env.pop("OUTBOX_MESSAGES_EXCHANGE")
        else:
            env |= {"OUTBOX_CLAIM_LEASE": "5s"}
        return self.program(version, name, env, Program)

    def program(self, version: str, name: str, env: dict[str, str], kind, **more):
        folder = self.options.earlier if version == "earlier" else self.options.today
        log = self.options.logs / f"versions-{self.name}-{version}-{name.rsplit('/')[-1]}.log"
        log.write_bytes(b"")
        program = kind(f"{version} {name}", folder / name, env, log, **more)
        self.programs.append(program)
        return program

    # --- what there is to deliver ----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Entries of both versions, often in one outbox: today's application carries on the earlier one's orders."""
        for version, saves in [("earlier", SAVES // 2), ("today", SAVES)]:
            app = self.application(version, lambda count, saves=saves: app_ends(count, saves))
            app.start()
            self.wait(f"the {version} application has saved", lambda: app.done.is_set() or app.saves >= saves)
            app.kill()

    def application(self, version: str, on_save) -> OrderApplication:
        env = {
            "OUTBOX_MONGODB_URI": self.options.mongodb,
            "OUTBOX_RABBITMQ_URI": NOBODY,
            "OUTBOX_MESSAGES_EXCHANGE": f"{self.name}.messages",
            "OUTBOX_COMMANDS_EXCHANGE": f"{self.name}.commands",
            "OUTBOX_COMMANDS_QUEUE": f"{self.name}.commands",
            "ORDERS_DATABASE": self.name,
            "ORDERS_SAVES": str(SAVES),
            "ORDERS_SAVES_A_SECOND": "400",
            "ORDERS_INLINE_LEASE_MS": "1000",
        }
        name = self.options.earlier_orders if version == "earlier" else "orders"
        return self.program(version, name, env, OrderApplication, on_save=on_save)

    def write_foreign(self, round_: str) -> None:
        """As another program leaves them: with every state of an entry, and `_id`s that both versions read."""
        now = datetime.datetime.now(datetime.timezone.utc)
        old = now - datetime.timedelta(minutes=1)
        states = {
            "undated": {},
            "dated": {"created_at": old, "available_at": old},
            "failed": {"created_at": old, "available_at": old, "attempts": 2, "last_error": "before"},
            "claimed": {"created_at": old, "available_at": old, "claimed_by": "gone/1", "claims": 1},
            "scheduled": {"created_at": now, "available_at": now + datetime.timedelta(seconds=4)},
            "unknown": {"created_at": old, "available_at": old, "later": {"version": 9}},
        }
        ids = [
            "text", "o-1\nforged", 7, Int64(1 << 60), 0.5, ObjectId(), True, old,
            Binary.from_uuid(uuid.uuid4(), UuidRepresentation.STANDARD), Binary(uuid.uuid4().bytes, 0),
            {"tenant": 1, "nested": {"list": [1, "two"]}},
        ]
        documents = []
        for state, fields in states.items():
            for index, key in enumerate(ids):
                message = uuid.uuid4()
                entry = {"id": Binary.from_uuid(message, UuidRepresentation.STANDARD), "type": "foreign", "payload": {"n": index}}
                self.foreign.add(str(message))
                documents.append({"_id": {"round": round_, "state": state, "of": key}, "outbox": [entry | fields]})
        # The bare ids too, once each.
        for key in ids:
            message = uuid.uuid4()
            entry = {"id": Binary.from_uuid(message, UuidRepresentation.STANDARD), "type": "foreign", "payload": None}
            self.foreign.add(str(message))
            documents.append({"_id": key, "outbox": [entry]})
        others = self.client[self.name][f"others_{round_}"]
        others.create_index(
            "outbox.available_at", name="outbox_available_at", partialFilterExpression={"outbox.id": {"$exists": True}}
        )
        others.insert_many(documents)

    # --- waiting and judging ----------------------------------------------------------------------------------------------

    def wait(self, what: str, done) -> None:
        while not done():
            for program in self.programs:
                program.check()
            if time.monotonic() - self.began > PATIENCE:
                raise Failed(f"{what}: not within {PATIENCE:.0f} s; {self.standing()}")
            time.sleep(0.05)

    def left(self) -> int:
        database = self.client[self.name]
        return sum(database[name].count_documents({"outbox.0": {"$exists": True}}) for name in database.list_collection_names())

    def expected(self) -> set[str]:
        return {message for sent in self.orders.sent() for message in sent} | self.foreign

    def standing(self) -> str:
        return f"{len(self.ledger.missing(self.expected()))} messages are missing, {self.left()} documents are left"

    def deliver_all(self) -> None:
        self.wait("every message arrives", lambda: not self.ledger.missing(self.expected()) and self.left() == 0)

    def arrived(self, share: float) -> None:
        enough = int(len(self.expected()) * share)
        self.wait(f"{share:.0%} of the messages arrive", lambda: self.ledger.arrived() >= enough)

    def owned_by(self, program: Program) -> None:
        self.wait(f"{program.name} owns the stream", lambda: 'owner of the stream"' in program.log.read_text(errors="replace"))

    def judge(self) -> list[str]:
        faults = []
        for program in self.programs:
            if "orders" in str(program.path):
                continue
            for line in program.log.read_text(errors="replace").splitlines():
                if BAD.search(line):
                    faults.append(f"{program.name} says: {line[:300]}")
        unexpected = self.ledger.unexpected(self.expected())
        if unexpected:
            faults.append(f"{unexpected} messages arrived that no save sent")
        late = self.ledger.out_of_order(self.orders.sent())
        if late:
            faults.append(f"{late} messages arrived after a later one of their order")
        return faults

    def refused(self, program: Program) -> list[str]:
        """What its series say while it runs."""
        address = re.search(r'"address":"([^"]+)"', program.log.read_text(errors="replace"))
        if address is None:
            return [f"{program.name} does not say where its metrics are"]
        with urllib.request.urlopen(f"http://{address[1]}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        bad = ("outbox_commands_refused_total", "outbox_dead_total", "outbox_unreadable_total")
        return [f"{program.name}: {line}" for line in lines if line.startswith(bad) and not line.endswith(" 0")]

    def end(self, keep: bool) -> None:
        for program in self.programs:
            program.stop()
        self.receiver.stop()
        if not keep:
            self.orders.drop(self.name, f"{self.name}_state")
            names = [f"{self.name}.messages", f"{self.name}.commands"]
            broker.delete(self.options.rabbitmq, names, [f"{self.name}.commands", f"{self.name}.receiver"])


def app_ends(_count: int, _saves: int) -> None:
    """The scene checks the count itself."""


def one_each(scene: Scene, rescuer: str, dispatcher: str) -> list[str]:
    services = [scene.service(rescuer, "outbox-rescuer"), scene.service(dispatcher, "outbox-dispatcher")]
    for service in services:
        service.start()
    scene.arrived(0.5)
    scene.write_foreign("second")
    scene.deliver_all()
    return [fault for service in services for fault in scene.refused(service)]


def all_at_once(scene: Scene) -> list[str]:
    rescuers = [scene.service(version, "outbox-rescuer") for version in ("earlier", "today")]
    dispatchers = [scene.service(version, "outbox-dispatcher") for version in ("earlier", "today")]
    faults = []
    for dispatcher in dispatchers:
        dispatcher.start()
    first, second = rescuers
    first.start()
    scene.owned_by(first)
    second.start()
    scene.arrived(0.3)

    # The stream changes hands twice, and each owner has something to find.
    for round_, (owner, successor) in enumerate([(first, second), (second, first)]):
        owner.stop()
        before = len(successor.log.read_text(errors="replace"))
        if successor is first:
            successor.start()
        owned = lambda: 'owner of the stream"' in successor.log.read_text(errors="replace")[before:]  # noqa: B023, E731
        scene.wait(f"{successor.name} takes the stream over", owned)
        scene.write_foreign(f"handover_{round_}")
        if round_ == 0:
            scene.deliver_all()
            owner.log.write_text("")
    scene.deliver_all()
    for service in [first, *dispatchers]:
        faults += scene.refused(service)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("earlier", "today", "logs"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("mongodb", "rabbitmq"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--earlier-orders", required=True)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()

    scenes = [
        ("earlier_rescuer", "the earlier rescuer, today's dispatcher", lambda scene: one_each(scene, "earlier", "today")),
        ("earlier_dispatcher", "today's rescuer, the earlier dispatcher", lambda scene: one_each(scene, "today", "earlier")),
        ("both", "both of each, and the stream changes hands twice", all_at_once),
    ]
    failed = False
    for name, title, play in scenes:
        scene = Scene(options, f"{name}_{int(time.time())}")
        try:
            scene.receiver.start()
            if not scene.receiver.ready.wait(20):
                raise Failed("RabbitMQ took no receiver within 20 s")
            scene.save()
            scene.write_foreign("first")
            faults = play(scene) + scene.judge()
            count, twice = len(scene.expected()), scene.ledger.twice()
            took = time.monotonic() - scene.began
            print(f"{title}: {count} messages, {twice} of them more than once, in {took:.0f} s", flush=True)
        except Failed as error:
            faults = [str(error)]
            print(f"{title}:", flush=True)
        finally:
            scene.end(options.keep)
        for fault in faults:
            failed = True
            print(f"  {fault}", flush=True)
    print("the versions do not work together" if failed else "no message was lost, refused or dead", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
