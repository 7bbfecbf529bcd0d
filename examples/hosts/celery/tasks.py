"""Tasks: `answer` stores a value, reads it back, and returns the process id and the value."""

import os

import app as web
import celery
import prefork_cache
import redis
from celery.signals import worker_process_init

broker = os.environ["BROKER_URL"]
app = celery.Celery("tasks", broker=broker)
app.conf.task_ignore_result = True
replies = redis.Redis.from_url(broker)

worker_process_init.connect(lambda **_: print(prefork_cache.after_fork(), flush=True), weak=False)  # the one line


@app.task
def answer(path, reply_to):
    replies.rpush(reply_to, b"".join(web.application({"PATH_INFO": path}, lambda *_: None)))
