import os

import prefork_cache

bind = "127.0.0.1:" + os.environ["PORT"]
workers = 4
preload_app = True
post_fork = lambda server, worker: server.log.info(prefork_cache.after_fork())  # the one line
