"""A web server with four connections to PostgreSQL, which it reopens if PostgreSQL closes them."""

import os
import queue
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

pool = queue.SimpleQueue()


def connect():
    connection = psycopg2.connect(host=os.environ["PGHOST"], dbname="postgres")
    connection.autocommit = True
    return connection


def answer(path):
    connection = pool.get()
    try:
        while True:
            try:
                connection = connection or connect()
                cursor = connection.cursor()
                cursor.execute("select answer(%s)", [path])
                return cursor.fetchone()[0].encode()
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if connection is None or not connection.closed:
                    raise
                connection = None
    finally:
        pool.put(connection)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = answer(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


for _ in range(4):
    pool.put(None)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
