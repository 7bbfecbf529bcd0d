"""A web server that handles each request by a task."""

import os
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import celery
import redis

broker = os.environ["BROKER_URL"]
tasks = celery.Celery("tasks", broker=broker)
replies = redis.Redis.from_url(broker, socket_timeout=130)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        reply_to = str(uuid.uuid4())
        tasks.send_task("tasks.answer", [self.path, reply_to])
        reply = replies.blpop([reply_to], timeout=120)
        self.send_response(200 if reply else 504)
        body = reply[1] if reply else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
