"""A WSGI application: /redis/KEY/VALUE stores a value, reads it back, and returns the process id and the value."""

import os

import prefork_cache

CACHES = {
    "redis": prefork_cache.Cache("redis", os.environ["REDIS_URL"]),
    "memcached": prefork_cache.Cache("memcached", os.environ["MEMCACHED_URL"]),
}

# Runs in the master, before it forks: the master makes its own connections.
for cache in CACHES.values():
    cache.set("motd", b"hello", 60)


def application(environ, start_response):
    _, store, key, value = environ["PATH_INFO"].split("/")
    cache = CACHES[store]
    cache.set(key, value.encode(), 60)
    body = b"%d %s" % (os.getpid(), cache.get(key))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
