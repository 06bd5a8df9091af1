"""Runs the demo and reports its steps; scripts/demo starts it."""

import argparse
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import receiver as broker
from .ledger import Ledger
from .orders import Orders
from .programs import Failed, OrderApplication, Program, services
from .receiver import Receiver
from .screen import Screen

SAVING_SECONDS = 36  # how long the application takes for its saves
MAX_ATTEMPTS, BACKOFF_MIN_MS, BACKOFF_MAX_MS = 4, 200, 1_000
SCHEDULE = 0.2 + 0.4 + 0.8  # the longest waits between four attempts
OUTAGE = 5.0  # seconds without a broker, besides its stop and start
INLINE, DISPATCHER = "orders-app", "outbox-dispatcher"  # as the AMQP property app_id has them
PATIENCE = 90.0  # for the last message, after the last save
SILENCE = {True: 30.0, False: 12.0}  # ... or this long without any, with and without the rescuer


@dataclass(frozen=True)
class Plan:
    """When what happens, drawn from the seed."""

    kill_after: int  # saves
    outage_after: int  # saves
    dispatcher_killed_after: float  # share of the backlog when the broker is back

    @classmethod
    def drawn(cls, seed: int, saves: int) -> "Plan":
        draw = random.Random(seed)
        return cls(
            kill_after=draw.randint(saves * 10 // 100, saves * 30 // 100),
            outage_after=draw.randint(saves * 35 // 100, saves * 45 // 100),
            dispatcher_killed_after=draw.uniform(0.05, 0.4),
        )


class Demo:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.name = f"outbox_demo_{time.strftime('%Y%m%d_%H%M%S')}"
        self.plan = Plan.drawn(options.seed, options.saves)
        self.ledger = Ledger()
        self.orders = Orders(options.mongodb, self.name)
        self.receiver = Receiver(options.rabbitmq, f"{self.name}.messages", f"{self.name}.receiver", self.ledger)
        self.screen = Screen(self.status)
        self.broker_is_down = False

        common = {
            "OUTBOX_MONGODB_URI": options.mongodb,
            "OUTBOX_RABBITMQ_URI": options.rabbitmq,
            "OUTBOX_MESSAGES_EXCHANGE": f"{self.name}.messages",
            "OUTBOX_COMMANDS_EXCHANGE": f"{self.name}.commands",
            "OUTBOX_COMMANDS_QUEUE": f"{self.name}.commands",
        }
        service = common | {
            "OUTBOX_WATCH": f"{self.name}.*",
            "OUTBOX_STATE_DATABASE": f"{self.name}_state",
            "OUTBOX_HTTP_LISTEN": "127.0.0.1:0",
        }
        self.app = OrderApplication(
            *self.program("orders", "orders"),
            common
            | {
                "ORDERS_DATABASE": self.name,
                "ORDERS_SAVES": str(options.saves),
                "ORDERS_SAVES_A_SECOND": str(options.saves // SAVING_SECONDS),
                "ORDERS_INLINE_LEASE_MS": "1000",
                "ORDERS_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
                "ORDERS_BACKOFF_MIN_MS": str(BACKOFF_MIN_MS),
                "ORDERS_BACKOFF_MAX_MS": str(BACKOFF_MAX_MS),
            },
            self.log("orders"),
            on_save=self.after_save,
        )
        self.rescuer = Program(
            *self.program("rescuer", "outbox-rescuer"),
            service | {"OUTBOX_DELAY": "2s", "OUTBOX_SWEEP_INTERVAL": "1s"},
            self.log("rescuer"),
        )
        self.dispatcher = Program(
            *self.program("dispatcher", "outbox-dispatcher"),
            service
            | {
                "OUTBOX_CLAIM_LEASE": "5s",
                "OUTBOX_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
                "OUTBOX_BACKOFF_MIN": f"{BACKOFF_MIN_MS}ms",
                "OUTBOX_BACKOFF_MAX": f"{BACKOFF_MAX_MS}ms",
            },
            self.log("dispatcher"),
        )

    def program(self, name: str, file: str) -> tuple[str, Path]:
        return name, self.options.binaries / file

    def log(self, name: str) -> Path:
        log = self.options.services / "log" / f"demo-{name}.log"
        log.write_bytes(b"")
        return log

    def programs(self) -> list[Program]:
        with_rescuer = [] if self.options.without_rescuer else [self.rescuer]
        return [self.app, self.dispatcher, *with_rescuer]

    # --- the story -----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Whether all is well in the end."""
        plan, say = self.plan, self.screen.say
        print(
            f"seed {self.options.seed}: the application is killed after save {plan.kill_after}, RabbitMQ goes after save "
            f"{plan.outage_after},\nand the dispatcher is killed when it has rescued {plan.dispatcher_killed_after:.0%} of the backlog",
            flush=True,
        )
        self.remember()
        self.receiver.start()
        if not self.receiver.ready.wait(20):
            raise Failed("RabbitMQ took no receiver within 20 s")
        self.dispatcher.start()
        if self.options.without_rescuer:
            say("the dispatcher runs; the rescuer does not, as asked for")
        else:
            self.rescuer.start()
            say("the dispatcher and the rescuer run")
        self.app.start()
        say(f"the application runs: {self.options.saves} saves in bursts, each with messages")
        self.screen.start()

        self.wait("the application is killed", lambda: self.app.stopping)
        self.app.kill()
        stranded = self.orders.outboxes()
        say(
            f"SIGKILL: the application died around save {self.app.saves}, leaving {stranded.messages} undelivered messages in "
            f"{stranded.documents} orders"
        )
        self.app.start()
        say("the application runs again")

        self.wait("the outage begins", lambda: self.app.saves >= plan.outage_after)
        waiting = self.outage()
        if not self.options.without_rescuer:
            enough = self.ledger.first_by(DISPATCHER) + int(waiting * plan.dispatcher_killed_after)
            self.wait("the dispatcher rescues", lambda: self.ledger.first_by(DISPATCHER) >= enough, patience=60)
            self.dispatcher.kill()
            self.dispatcher.start()
            say("SIGKILL: the dispatcher died in the middle of it, and runs again")

        self.wait("the application has saved everything", self.app.done.is_set)
        self.app.process.wait()
        self.app.stopping = True
        say("the application has saved everything, and ended")
        self.settle()
        self.screen.stop()
        return self.conclude()

    def after_save(self, saves: int) -> None:
        """Kills the application from the thread that reads its reports, right after that save was reported."""
        if saves >= self.plan.kill_after and not self.app.killed_once:
            self.app.killed_once = True
            self.app.stopping = True
            self.app.process.kill()

    def outage(self) -> int:
        """Gives the number of messages that wait at its end."""
        say = self.screen.say
        before = self.app.saves
        self.broker_is_down = True
        services(self.options.root, "stop", "rabbitmq")
        began = time.monotonic()
        say(f"RabbitMQ is stopped, for longer than the whole retry schedule ({SCHEDULE:.1f} s); the application continues")
        self.wait_seconds(OUTAGE)
        services(self.options.root, "start", "rabbitmq")
        self.broker_is_down = False
        waiting = self.orders.outboxes()
        say(
            f"RabbitMQ is back after {time.monotonic() - began:.0f} s; {self.app.saves - before} saves were made without it, "
            f"{waiting.messages} messages wait in {waiting.documents} orders"
        )
        return waiting.messages

    def settle(self) -> None:
        """Until everything arrived and left the outboxes, or no more messages arrive."""
        expected = {message_id for sent in self.orders.sent() for message_id in sent}
        end = time.monotonic() + PATIENCE
        silence = SILENCE[not self.options.without_rescuer]
        arrived, last, told = self.ledger.arrived(), time.monotonic(), 0.0
        while True:
            missing, left = len(self.ledger.missing(expected)), self.orders.outboxes()
            if not missing and not left.messages:
                return
            now = time.monotonic()
            if self.ledger.arrived() > arrived:
                arrived, last = self.ledger.arrived(), now
            if now > end or now - last > silence:
                self.screen.say(f"nothing arrived for {now - last:.0f} s; not waiting any longer")
                return
            if now - told > 5:
                told = now
                self.screen.say(
                    f"waiting for {missing} messages to arrive, and for {left.messages} to leave {left.documents} outboxes"
                )
            self.wait_seconds(0.3)

    # --- the table -----------------------------------------------------------------------------------------------------

    def conclude(self) -> bool:
        sent = self.orders.sent()
        expected = {message_id for ids in sent for message_id in ids}
        left, saves = self.orders.outboxes(), self.orders.saves()
        lost = len(self.ledger.missing(expected))
        rescued = self.ledger.first_by(DISPATCHER)
        late, unexpected = self.ledger.out_of_order(sent), self.ledger.unexpected(expected)
        rows = [
            ("saved", len(expected), f"messages, in {saves} saves of {len(sent)} orders"),
            ("inline", self.ledger.first_by(INLINE), "delivered by the application itself"),
            ("rescued", rescued, "delivered by the dispatcher"),
            ("twice", self.ledger.twice(), "of them delivered more than once"),
            ("dead", left.dead, "given up"),
            ("lost", lost, "never arrived"),
        ]
        print("\n" + "\n".join(f"  {name:<8} {count:>7}  {what}" for name, count, what in rows) + "\n", flush=True)

        wrong = []
        if saves < self.options.saves:
            wrong.append(f"only {saves} of {self.options.saves} saves were made")
        if lost:
            wrong.append(f"{lost} messages were saved and never arrived")
        if left.dead:
            wrong.append(f"{left.dead} messages were given up")
        if left.messages > left.dead:
            wrong.append(f"{left.messages - left.dead} messages are still in the outboxes of {left.documents} orders")
        if not rescued:
            wrong.append("no message was rescued, so this run proves nothing")
        if late:
            wrong.append(f"{late} messages arrived after a later one of their order")
        if unexpected:
            wrong.append(f"{unexpected} messages arrived that no save sent")
        if wrong:
            why = " (as expected without the rescuer)" if self.options.without_rescuer else ""
            print(f"Failed{why}: {'; '.join(wrong)}.", flush=True)
        else:
            print("Every message of every save arrived, in order; nothing is left behind.", flush=True)
        return not wrong

    # --- waiting and cleaning up ----------------------------------------------------------------------------------------

    def status(self) -> str:
        ledger, app = self.ledger, self.app
        waiting = "RabbitMQ is down" if self.broker_is_down else f"twice {ledger.twice()}"
        return (
            f"{app.saves:>5} saves   {app.messages:>5} messages   {ledger.first_by(INLINE):>5} inline   "
            f"{ledger.first_by(DISPATCHER):>4} rescued   {waiting}"
        )

    def wait(self, what: str, until, patience: float = 180) -> None:
        end = time.monotonic() + patience
        while not until():
            self.check()
            if time.monotonic() > end:
                raise Failed(f"waited {patience:.0f} s for this, which did not happen: {what}; see {self.options.services}/log")
            time.sleep(0.05)

    def wait_seconds(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(0.2, left))

    def check(self) -> None:
        for program in self.programs():
            program.check()

    def remember(self) -> None:
        """A demo that is killed leaves its database and queues; the next one of this checkout removes them."""
        note = self.options.services / "demo-run"
        if note.exists():
            self.remove(note.read_text().strip())
        note.write_text(self.name)

    def remove(self, name: str) -> None:
        self.orders.drop(name, f"{name}_state")
        broker.delete(
            self.options.rabbitmq,
            exchanges=[f"{name}.messages", f"{name}.commands"],
            queues=[f"{name}.receiver", f"{name}.commands"],
        )

    def clean_up(self) -> None:
        self.screen.stop()
        for program in self.programs():
            program.stop()
        self.receiver.stop()
        if self.broker_is_down:
            services(self.options.root, "start", "rabbitmq")
        if self.options.keep:
            print(f"kept: database {self.name}, queue {self.name}.receiver, logs in {self.options.services}/log", flush=True)
        else:
            self.remove(self.name)
        (self.options.services / "demo-run").unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--saves", type=int, required=True)
    parser.add_argument("--without-rescuer", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--services", type=Path, required=True)
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--mongodb", required=True)
    parser.add_argument("--rabbitmq", required=True)
    demo = Demo(parser.parse_args())

    interruptions = []

    def interrupted(signal_number, _frame):
        interruptions.append(signal_number)
        if len(interruptions) == 1:  # cleaning up takes seconds, and is not to be cut short
            raise Failed("interrupted; cleaning up")

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    try:
        return 0 if demo.run() else 1
    except Failed as failed:
        demo.screen.stop()
        print(f"demo: {failed}", file=sys.stderr, flush=True)
        return 1
    finally:
        try:
            demo.clean_up()
        except Exception as error:  # whatever it is, the next demo tries again
            print(f"demo: could not clean up: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
