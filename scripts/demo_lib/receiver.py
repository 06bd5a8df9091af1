"""A receiver of messages that only knows AMQP, not this project's library."""

import threading
import time

import pika
from pika.exceptions import AMQPError

from .ledger import Ledger


class Receiver:
    """Takes everything that is published to the exchange, through a durable queue of its own."""

    def __init__(self, uri: str, exchange: str, queue: str, ledger: Ledger):
        self.uri, self.exchange, self.queue, self.ledger = uri, exchange, queue, ledger
        self.ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._receive()
            except (AMQPError, OSError):  # the broker is down: that is part of the demo
                self._stop.wait(0.2)

    def _receive(self) -> None:
        with pika.BlockingConnection(connection_parameters(self.uri)) as connection:
            channel = connection.channel()
            channel.exchange_declare(self.exchange, "topic", durable=True)
            channel.queue_declare(self.queue, durable=True)
            channel.queue_bind(self.queue, self.exchange, "#")
            channel.basic_qos(prefetch_count=200)
            self.ready.set()
            for method, properties, _body in channel.consume(self.queue, inactivity_timeout=0.2):
                if method is not None:
                    self.ledger.note(properties.message_id, properties.app_id, method.redelivered)
                    channel.basic_ack(method.delivery_tag)
                if self._stop.is_set():
                    return


def connection_parameters(uri: str) -> pika.URLParameters:
    parameters = pika.URLParameters(uri)
    parameters.connection_attempts = 1
    parameters.socket_timeout = 5
    parameters.blocked_connection_timeout = 30
    return parameters


def delete(uri: str, exchanges: list[str], queues: list[str], patience: float = 20) -> None:
    """Deletes exchanges and queues, waiting for a broker that has only just started."""
    end = time.monotonic() + patience
    while True:
        try:
            with pika.BlockingConnection(connection_parameters(uri)) as connection:
                channel = connection.channel()
                for queue in queues:
                    channel.queue_delete(queue)
                for exchange in exchanges:
                    channel.exchange_delete(exchange)
            return
        except (AMQPError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
